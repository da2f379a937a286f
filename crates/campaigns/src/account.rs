//! The account of a round, and sums of accounts.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The fate of the records of some rounds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Account {
    /// Kills, power cuts or faults: the campaign's unit.
    pub rounds: u64,
    /// Messages that Redis accepted from the producer, malformed ones included.
    pub pushed: u64,
    /// Records that the ControlPlane processed, counted once per key.
    pub delivered: u64,
    /// Dead letters that are correct: refused records and malformed messages.
    pub dead_letters: u64,
    /// Records in Redis or in the outbox at the end.
    pub waiting: u64,
    /// Deliveries that the ControlPlane recognised as repetitions.
    pub sent_again: u64,
    /// Records that the agent took from Redis twice.
    pub doubled: u64,
    /// Repetitions with another key, or another body.
    pub unrecognisable: u64,
    /// Records that came in the wrong order of their session.
    pub out_of_order: u64,
    /// Records found nowhere.
    pub lost: u64,
    /// Answers to quota requests that did not reach Redis, or that Redis lost.
    pub answers_missing: u64,
    /// What was done to the agent and what it did, by name.
    pub events: BTreeMap<String, u64>,
}

impl Account {
    /// Counts an event.
    pub(crate) fn event(&mut self, name: &str) {
        *self.events.entry(name.to_owned()).or_default() += 1;
    }

    /// Adds another account to this one.
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.rounds, other.rounds),
            (&mut self.pushed, other.pushed),
            (&mut self.delivered, other.delivered),
            (&mut self.dead_letters, other.dead_letters),
            (&mut self.waiting, other.waiting),
            (&mut self.sent_again, other.sent_again),
            (&mut self.doubled, other.doubled),
            (&mut self.unrecognisable, other.unrecognisable),
            (&mut self.out_of_order, other.out_of_order),
            (&mut self.lost, other.lost),
            (&mut self.answers_missing, other.answers_missing),
        ] {
            *sum += more;
        }
        for (name, count) in &other.events {
            *self.events.entry(name.clone()).or_default() += count;
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pushed, {} delivered, {} dead letters, {} waiting; {} sent again, {} doubled, {} unrecognisable, \
             {} out of order, {} lost",
            self.pushed,
            self.delivered,
            self.dead_letters,
            self.waiting,
            self.sent_again,
            self.doubled,
            self.unrecognisable,
            self.out_of_order,
            self.lost
        )
    }
}

/// One seed's account and violations.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub account: Account,
    pub violations: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_add_up_field_by_field() {
        let mut one = serde_json::to_value(Account::default()).unwrap();
        for (name, value) in one.as_object_mut().unwrap() {
            *value = if name == "events" { serde_json::json!({"killed": 1}) } else { 1.into() };
        }
        let one: Account = serde_json::from_value(one).unwrap();
        let mut two = one.clone();
        two.add(&one);
        let two = serde_json::to_string(&two).unwrap();
        assert_eq!(two, serde_json::to_string(&one).unwrap().replace(":1", ":2"));
    }
}
