//! The contents of one request: records grouped by session, each with its history.

use clap::ValueEnum;

use super::key::LaneKey;
use crate::outbox::Ticket;
use crate::record::Record;

/// The order in which one session's records are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SessionOrder {
    /// One after another.
    #[default]
    Strict,
    /// The started event first and the completed event last; usage in between in any order, several requests at once.
    Boundaries,
}

/// The number of requests that the `ControlPlane` fulfilled, and of those that failed with 5xx.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::drain) struct Outcomes {
    pub passes: u64,
    pub failures: u64,
}

/// Refusals over different connections that confirm a record's refusal.
pub(in crate::drain) const CONFIRMED: u8 = 2;

/// A record's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drain) struct AttemptHistory {
    pub attempts: u32,
    /// Attempts that failed with 5xx while other records succeeded.
    pub poisoned: u32,
    /// Unconfirmed refusals, each over another connection.
    pub refusals: u8,
    /// Its last batch was compressed and failed as a whole: it is sent uncompressed once.
    pub is_plain: bool,
    /// Deliveries of its kind before its last attempt.
    pub deliveries: u64,
    /// Deliveries of any kind before its last attempt.
    pub any_deliveries: u64,
    /// The outcomes of its kind at its first attempt.
    pub first: Outcomes,
    /// Failures since then that were those of its own requests.
    pub own_failures: u64,
    /// Maximum records in its batches. Halved when a batch fails as a whole, so that a record at fault is finally alone.
    pub batch_most: usize,
}

impl AttemptHistory {
    pub(in crate::drain) const NONE: Self = Self {
        attempts: 0,
        poisoned: 0,
        refusals: 0,
        is_plain: false,
        deliveries: 0,
        any_deliveries: 0,
        first: Outcomes { passes: 0, failures: 0 },
        own_failures: 0,
        batch_most: usize::MAX,
    };

    /// Whether it was refused and waits for confirmation.
    pub(in crate::drain) fn is_suspect(&self) -> bool {
        self.refusals > 0
    }

    /// Whether it was refused twice, over different connections.
    pub(in crate::drain) fn is_confirmed(&self) -> bool {
        self.refusals >= CONFIRMED
    }
}

/// A record in memory.
#[derive(Debug)]
pub(in crate::drain) struct Item {
    pub ticket: Ticket,
    pub record: Record,
    pub history: AttemptHistory,
    /// Its last refusal.
    pub refusal: Option<Box<str>>,
}

/// Records of one session, in order.
#[derive(Debug)]
pub(in crate::drain) struct Group {
    pub lane: LaneKey,
    pub items: Vec<Item>,
}

/// The contents of one request.
pub(in crate::drain) type Parcel = Vec<Group>;

/// The number of records.
pub(in crate::drain) fn records_in(parcel: &[Group]) -> usize {
    parcel.iter().map(|group| group.items.len()).sum()
}

/// The records themselves.
pub(in crate::drain) fn items(parcel: &[Group]) -> impl Iterator<Item = &Item> {
    parcel.iter().flat_map(|group| &group.items)
}

/// The same, to be changed.
pub(in crate::drain) fn items_mut(parcel: &mut [Group]) -> impl Iterator<Item = &mut Item> {
    parcel.iter_mut().flat_map(|group| &mut group.items)
}

/// The records and their lanes, to be put back: the last of each lane first, so that each is put back before the previous
/// one.
pub(in crate::drain) fn last_first(parcel: Parcel) -> impl Iterator<Item = (LaneKey, Item)> {
    parcel.into_iter().flat_map(|group| group.items.into_iter().rev().map(move |item| (group.lane, item)))
}

/// The lanes of the records.
pub(in crate::drain) fn lanes_of(parcel: &[Group]) -> impl Iterator<Item = LaneKey> {
    parcel.iter().map(|group| group.lane)
}

/// The remaining room in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// Records already in it.
    pub(super) taken: usize,
    /// Maximum number of records, given those already in it.
    pub(super) most: usize,
}

impl Room {
    pub(super) fn of(records: usize, bytes: usize) -> Self {
        Self { records, bytes, taken: 0, most: usize::MAX }
    }

    /// An equal share for each of this many lanes.
    pub(super) fn share(self, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        Self::of(self.records.div_ceil(lanes), self.bytes.div_ceil(lanes))
    }

    /// Whether a record of this size fits. The first always does.
    pub(super) fn fits(self, bytes: usize) -> bool {
        self.taken == 0 || (self.records > 0 && bytes <= self.bytes)
    }

    /// Whether a record that may travel with at most `most` records, including itself, may join.
    pub(super) fn admits(self, most: usize) -> bool {
        self.taken < most.min(self.most).max(1)
    }

    /// Adds a record of this size that may travel with at most `most` records.
    pub(super) fn take(&mut self, bytes: usize, most: usize) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.taken += 1;
        self.most = self.most.min(most);
    }
}
