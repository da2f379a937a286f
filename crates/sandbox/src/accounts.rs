//! Accounts of what was processed: each record once, by its key, its transaction and its body.
//!
//! A test may deliver ten million records, so a record takes about 100 bytes, all of them hashes.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128, xxh3_128_with_seed};

use super::KEY_NAMESPACE;
use super::kind::Kind;
use super::order::{Prehashed, Sessions, Step, Violations};

/// An idempotency key: a UUID, or the hash of any other text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u128);

impl Key {
    /// A delivery without a key, identified by its transaction alone.
    pub(super) const NONE: Self = Self(0);

    /// The key of a record, from its kind and transaction, however it is delivered.
    pub(super) fn of_record(kind: Kind, transaction: &str) -> Self {
        let name = [kind.wire_name(), ":", transaction].concat();
        Self(Uuid::new_v5(&KEY_NAMESPACE, name.as_bytes()).as_u128())
    }

    /// The key of a batch, from its records' keys in order.
    pub(super) fn of_batch(records: impl Iterator<Item = Self>) -> Self {
        let keys: Vec<u8> = records.flat_map(|key| key.0.to_be_bytes()).collect();
        Self(Uuid::new_v5(&KEY_NAMESPACE, &keys).as_u128())
    }

    pub(super) fn of(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(uuid) => Self(uuid.as_u128()),
            Err(_) => Self(xxh3_128(text.as_bytes())),
        }
    }

    fn short(self) -> u64 {
        xxh3_64(&self.0.to_ne_bytes())
    }

    pub(super) fn text(self) -> Option<String> {
        (self != Self::NONE).then(|| Uuid::from_u128(self.0).to_string())
    }
}

/// A received record. Everything is hashed in advance: little remains to do while the accounts are locked.
pub(super) struct Delivery<'a> {
    pub(super) session: &'a str,
    pub(super) key: Key,
    pub(super) step: Step<'a>,
    identity: u128,
    session_hash: u128,
    body_hash: u64,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(session: &'a str, key: Key, step: Step<'a>, body: &[u8]) -> Self {
        let (identity, session_hash) = (identity(step.kind, step.transaction), xxh3_128(session.as_bytes()));
        Self { session, key, step, identity, session_hash, body_hash: xxh3_64(body) }
    }
}

fn identity(kind: Kind, transaction: &str) -> u128 {
    xxh3_128_with_seed(transaction.as_bytes(), kind as u64)
}

/// The result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// It was processed.
    Processed,
    /// It had been processed before.
    Duplicate,
}

/// A record that was processed.
struct ProcessedRecord {
    key: Key,
    body_hash: u64,
    session: u32,
    seen: u16,
}

/// Totals of one kind: `received` = `processed` + `duplicates` + `turned_away`.
#[derive(Clone, Copy, Default, Serialize)]
struct Totals {
    /// Deliveries that were read.
    received: u64,
    processed: u64,
    duplicates: u64,
    duplicates_same_key_and_body: u64,
    duplicates_different: u64,
    /// Deliveries answered with an error and not processed.
    turned_away: u64,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Kinds {
    usage: Totals,
    started: Totals,
    completed: Totals,
    quota: Totals,
}

impl Kinds {
    fn of(&mut self, kind: Kind) -> &mut Totals {
        match kind {
            Kind::Usage => &mut self.usage,
            Kind::Started => &mut self.started,
            Kind::Completed => &mut self.completed,
            Kind::Quota => &mut self.quota,
        }
    }
}

/// What is known of a transaction.
#[derive(Serialize)]
pub(super) struct Sighting<'a> {
    seen: u16,
    key: Option<String>,
    session: Option<&'a str>,
}

/// Everything that was processed.
#[derive(Default)]
pub(super) struct Accounts {
    entries: HashMap<u128, ProcessedRecord, Prehashed>,
    keys: HashSet<u64, Prehashed>,
    sessions: Sessions,
    kinds: Kinds,
    key_violations: Violations,
}

impl Accounts {
    /// Enters a delivery: processes it, or counts it as a duplicate.
    pub(super) fn receive(&mut self, delivery: &Delivery<'_>) -> Receipt {
        let Step { kind, transaction, .. } = delivery.step;
        let totals = self.kinds.of(kind);
        totals.received += 1;
        if let Some(entry) = self.entries.get_mut(&delivery.identity) {
            entry.seen = entry.seen.saturating_add(1);
            totals.duplicates += 1;
            if entry.key != delivery.key {
                totals.duplicates_different += 1;
                self.key_violations.add(|| format!("{} {transaction} came with two keys", kind.label()));
            } else if entry.body_hash == delivery.body_hash {
                totals.duplicates_same_key_and_body += 1;
            } else {
                totals.duplicates_different += 1;
            }
            return Receipt::Duplicate;
        }
        if delivery.key != Key::NONE && !self.keys.insert(delivery.key.short()) {
            // A ControlPlane that trusts keys would treat it as a duplicate and lose this record.
            totals.duplicates += 1;
            totals.duplicates_different += 1;
            self.key_violations
                .add(|| format!("{} {transaction} came with another record's key", kind.label()));
            return Receipt::Duplicate;
        }
        totals.processed += 1;
        let session = self.sessions.number(delivery.session_hash, delivery.session);
        self.sessions.step(session, &delivery.step);
        let Delivery { key, body_hash, .. } = *delivery;
        self.entries.insert(delivery.identity, ProcessedRecord { key, body_hash, session, seen: 1 });
        Receipt::Processed
    }

    /// Notes a batch whose key does not match its records.
    pub(super) fn wrong_batch_key(&mut self, came: &str, expected: Key) {
        let expected = expected.text().unwrap_or_default();
        self.key_violations.add(|| format!("a batch came with the key {came}, its records give {expected}"));
    }

    /// Enters a delivery that was answered with an error.
    pub(super) fn turn_away(&mut self, kind: Kind) {
        let totals = self.kinds.of(kind);
        totals.received += 1;
        totals.turned_away += 1;
    }

    pub(super) fn sighting(&self, kind: Kind, transaction: &str) -> Sighting<'_> {
        match self.entries.get(&identity(kind, transaction)) {
            Some(entry) => Sighting {
                seen: entry.seen,
                key: entry.key.text(),
                session: self.sessions.name(entry.session),
            },
            None => Sighting { seen: 0, key: None, session: None },
        }
    }

    pub(super) fn report(&self) -> impl Serialize + use<> {
        #[derive(Serialize)]
        struct Report {
            kinds: Kinds,
            sessions: usize,
            order_violations: Violations,
            key_violations: Violations,
        }
        Report {
            kinds: self.kinds,
            sessions: self.sessions.count(),
            order_violations: self.sessions.violations().clone(),
            key_violations: self.key_violations.clone(),
        }
    }
}
