//! The last few bodies, to look at.

use std::collections::VecDeque;

use serde::Serialize;

use super::accounts::{Kind, Receipt};

/// How many are kept.
pub(super) const CAPACITY: usize = 100;
/// A larger body is not kept: with [`CAPACITY`] it bounds the memory.
const MAX_BYTES: usize = 512 << 10;

/// One record as it came.
#[derive(Clone, Serialize)]
pub(super) struct Recent {
    kind: Kind,
    session: String,
    duplicate: bool,
    body: String,
}

/// The newest records, the newest last.
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

    /// The newest `limit`, the newest first.
    pub(super) fn newest(&self, limit: usize) -> Vec<Recent> {
        self.0.iter().rev().take(limit).cloned().collect()
    }
}
