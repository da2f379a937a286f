//! The order within a session: started, then usage by its sequence, then completed, then nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::kind::Kind;

/// The hasher for keys that are already hashes.
pub(super) type Prehashed = BuildHasherDefault<TakeHash>;

/// Hashes a hash to itself.
#[derive(Default)]
pub(super) struct TakeHash(u64);

impl Hasher for TakeHash {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Violations described as text; further ones are only counted.
const EXAMPLES: usize = 20;

/// A count, and the first few as text.
#[derive(Clone, Default, Serialize)]
pub(super) struct Violations {
    count: u64,
    examples: Vec<String>,
}

impl Violations {
    pub(super) fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// Every session seen so far.
#[derive(Default)]
pub(super) struct Sessions {
    numbers: HashMap<u128, u32, Prehashed>,
    sessions: Vec<Session>,
    violations: Violations,
}

struct Session {
    name: Box<str>,
    usage: u32,
    sequence: Option<i64>,
    started: bool,
    completed: bool,
}

/// A record that is processed for the first time.
pub(super) struct Step<'a> {
    pub(super) kind: Kind,
    pub(super) transaction: &'a str,
    /// The producer's sequence number within the session, if any.
    pub(super) sequence: Option<i64>,
}

impl Sessions {
    /// The number of the session with this name and its hash.
    pub(super) fn number(&mut self, hash: u128, name: &str) -> u32 {
        *self.numbers.entry(hash).or_insert_with(|| {
            let session =
                Session { name: name.into(), usage: 0, sequence: None, started: false, completed: false };
            self.sessions.push(session);
            (self.sessions.len() - 1) as u32
        })
    }

    pub(super) fn name(&self, number: u32) -> Option<&str> {
        self.sessions.get(number as usize).map(|session| &*session.name)
    }

    pub(super) fn count(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn violations(&self) -> &Violations {
        &self.violations
    }

    /// Checks the next record of a session. Quota refreshes have no order.
    pub(super) fn step(&mut self, number: u32, step: &Step<'_>) {
        let Some(session) = self.sessions.get_mut(number as usize) else { return };
        if step.kind == Kind::Quota {
            return;
        }
        let mut violation = |what: String| {
            let (name, kind, transaction) = (&session.name, step.kind.label(), step.transaction);
            self.violations.add(|| format!("session {name}: {kind} {transaction} {what}"));
        };
        if session.completed {
            violation("after completed".to_owned());
        }
        match step.kind {
            Kind::Usage => {
                if let (Some(sequence), Some(last)) = (step.sequence, session.sequence)
                    && sequence <= last
                {
                    violation(format!("with sequence {sequence} after {last}"));
                }
                session.usage = session.usage.saturating_add(1);
                session.sequence = session.sequence.max(step.sequence);
            }
            Kind::Started => {
                if !session.started && session.usage > 0 {
                    violation(format!("after {} usage records", session.usage));
                }
                session.started = true;
            }
            Kind::Completed => session.completed = true,
            Kind::Quota => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The violations reported for one session's records in this order.
    fn judge(steps: &[(Kind, Option<i64>)]) -> Vec<String> {
        let mut sessions = Sessions::default();
        let number = sessions.number(1, "s");
        for &(kind, sequence) in steps {
            sessions.step(number, &Step { kind, transaction: "t", sequence });
        }
        assert_eq!(sessions.violations.count as usize, sessions.violations.examples.len());
        sessions.violations.examples
    }

    #[test]
    fn the_right_order_is_no_violation() {
        use Kind::{Completed, Quota, Started, Usage};
        let none: Vec<String> = Vec::new();
        assert_eq!(
            judge(&[
                (Started, None),
                (Usage, Some(1)),
                (Usage, None),
                (Usage, Some(5)),
                (Completed, None),
                (Quota, None)
            ]),
            none
        );
        assert_eq!(
            judge(&[(Usage, None), (Usage, None), (Completed, None)]),
            none,
            "a session without a started"
        );
    }

    #[test]
    fn each_wrong_order_is_one_violation() {
        use Kind::{Completed, Started, Usage};
        assert_eq!(judge(&[(Usage, None), (Started, None)]), ["session s: started t after 1 usage records"]);
        assert_eq!(judge(&[(Completed, None), (Usage, None)]), ["session s: usage t after completed"]);
        assert_eq!(judge(&[(Completed, None), (Started, None)]), ["session s: started t after completed"]);
        assert_eq!(
            judge(&[(Usage, Some(2)), (Usage, Some(2))]),
            ["session s: usage t with sequence 2 after 2"]
        );
        let late = judge(&[(Usage, Some(3)), (Usage, Some(1)), (Usage, Some(2))]);
        assert_eq!(late.len(), 2, "both come after 3: {late:?}");
    }

    #[test]
    fn only_the_first_violations_are_told_in_words() {
        let mut violations = Violations::default();
        (0..50).for_each(|n| violations.add(|| n.to_string()));
        assert_eq!((violations.count, violations.examples.len()), (50, EXAMPLES));
    }
}
