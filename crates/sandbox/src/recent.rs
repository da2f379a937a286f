//! The last few bodies, for inspection.

use std::collections::VecDeque;

use serde::Serialize;

use super::accounts::Receipt;
use super::kind::Kind;

/// Bodies kept.
pub(super) const CAPACITY: usize = 100;
/// A larger body is not kept: together with [`CAPACITY`] this limits the memory.
const MAX_BYTES: usize = 512 << 10;

/// A record as received.
#[derive(Clone, Serialize)]
pub(super) struct Recent {
    kind: Kind,
    session: String,
    duplicate: bool,
    body: String,
}

/// The latest records, newest last.
#[derive(Default)]
pub(super) struct Recents(VecDeque<Recent>);

impl Recents {
    pub(super) fn push(&mut self, kind: Kind, session: &str, receipt: Receipt, body: &str) {
        if body.len() > MAX_BYTES {
            return;
        }
        if self.0.len() == CAPACITY {
            self.0.pop_front();
        }
        let duplicate = receipt == Receipt::Duplicate;
        self.0.push_back(Recent { kind, session: session.to_owned(), duplicate, body: body.to_owned() });
    }

    /// The latest `limit`, newest first.
    pub(super) fn newest(&self, limit: usize) -> Vec<Recent> {
        self.0.iter().rev().take(limit).cloned().collect()
    }
}
