//! The keys of lanes, and how they are hashed.

use std::hash::Hasher;

use crate::outbox::Ticket;
use crate::record::{Kind, Record};

/// A lane's key: a hash of its session, or a quota request's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::drain) struct LaneKey(u128);

impl LaneKey {
    #[cfg(test)]
    pub(in crate::drain) fn of_test(number: u128) -> Self {
        Self(number)
    }

    pub(super) fn of(ticket: &Ticket, record: &Record) -> Self {
        match ticket.kind {
            Kind::Quota => Self(u128::from(ticket.seq)),
            _ => Self::of_session(record.session()),
        }
    }

    pub(in crate::drain) fn of_session(session: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(session.as_bytes()))
    }
}

/// Hasher for lane keys, which are hashes already: hashing them again, several times per record, took a twentieth of the
/// drain's time.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write_u128(&mut self, key: u128) {
        // Quota requests have consecutive numbers: an odd factor spreads them over all bits.
        self.0 = ((key >> 64) as u64 ^ key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
