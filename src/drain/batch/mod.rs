//! Whether records are sent in batches now, and how large these are, as learned from the answers.

mod body;
mod encodings;
pub(super) mod layout;

use std::num::NonZeroUsize;

use clap::ValueEnum;
use tokio::time::{Duration, Instant};

use super::queues::{Group, items};
use crate::control_plane::Encoding;
use crate::record::Record;
pub(super) use body::BatchBody;
use body::{COMPRESS_FROM, Encoder};
pub use encodings::Compression;
use encodings::Encodings;
use layout::{EMPTY, group_size, size};

/// When to try again after a `ControlPlane` had no batches, broke their promise, or refused a body as too large.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// How long types are sent separately after a batch of several types failed as a whole.
const APART: Duration = Duration::from_secs(60);

/// How records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryMode {
    /// One per request.
    Single,
    /// Many per request.
    Batch,
    /// Many per request if the `ControlPlane` supports it, else one.
    Auto,
}

/// Settings of batches.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether to use batches.
    pub mode: DeliveryMode,
    /// Maximum records in a batch.
    pub max_records: usize,
    /// Maximum bytes in a batch, before compression.
    pub max_bytes: usize,
    /// How to compress them.
    pub compression: Compression,
}

/// Whether records are sent in batches, and how.
pub(super) struct Batching {
    settings: Settings,
    /// Maximum bytes in a batch, as learned from 413 answers, and until when.
    reduced: Option<(usize, Instant)>,
    /// No batches until then.
    absent_until: Option<Instant>,
    /// The promise of order was broken: until then a batch holds one record per session.
    breached_until: Option<Instant>,
    /// A batch of several types failed as a whole: until then each type is sent separately, to show which is at fault.
    one_kind_until: Option<Instant>,
    /// A batch was answered record by record.
    is_proven: bool,
    /// A batch is in flight to find out.
    is_trying: bool,
    pub(super) encodings: Encodings,
    encoder: Encoder,
}

impl Batching {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            reduced: None,
            encodings: Encodings::new(settings.compression),
            settings,
            absent_until: None,
            breached_until: None,
            one_kind_until: None,
            is_proven: false,
            is_trying: false,
            encoder: Encoder::default(),
        }
    }

    /// Whether records go in batches now.
    pub(super) fn is_on(&mut self, now: Instant) -> bool {
        for until in [&mut self.absent_until, &mut self.breached_until, &mut self.one_kind_until] {
            until.take_if(|until| *until <= now);
        }
        self.reduced.take_if(|(_, until)| *until <= now);
        self.encodings.expire(now);
        match self.settings.mode {
            DeliveryMode::Single => false,
            DeliveryMode::Batch => true,
            // Until the first is answered, the others are sent singly.
            DeliveryMode::Auto => self.absent_until.is_none() && (self.is_proven || !self.is_trying),
        }
    }

    /// Limits of one batch, given that `wire_bytes` may be in flight: records, and bytes before compression.
    pub(super) fn limits(&self, wire_bytes: usize) -> (usize, usize) {
        let plain = (wire_bytes as f64 / self.encoder.ratio()) as usize;
        (self.settings.max_records, plain.max(COMPRESS_FROM).min(self.max_bytes()))
    }

    fn max_bytes(&self) -> usize {
        self.reduced.map_or(self.settings.max_bytes, |(bytes, _)| bytes)
    }

    /// The approximate wire bytes of the largest batch.
    pub(super) fn largest(&self) -> f64 {
        let of_records = self.settings.max_records as f64 * self.encoder.record_bytes.unwrap_or(f64::MAX);
        of_records.min(self.max_bytes() as f64 * self.encoder.ratio())
    }

    /// The most records per session in a batch.
    pub(super) fn session_most(&self) -> Option<NonZeroUsize> {
        self.breached_until.map(|_| NonZeroUsize::MIN)
    }

    /// Whether records may be sent singly to their own endpoints.
    pub(super) fn has_singles(&self) -> bool {
        self.settings.mode == DeliveryMode::Auto
    }

    /// Whether a batch was ever answered record by record.
    pub(super) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// A body was too large: use smaller ones for a while.
    pub(super) fn too_large(&mut self, parcel: &[Group], now: Instant) {
        self.reduce(items(parcel).map(|item| size(&item.record)).sum(), now);
    }

    /// A body with so many bytes of records was too large.
    fn reduce(&mut self, bytes: usize, now: Instant) {
        let half = (bytes / 2).max(COMPRESS_FROM);
        self.reduced = Some((self.max_bytes().min(half), now + ASK_AGAIN));
    }

    /// Whether a batch may contain only one kind of records.
    pub(super) fn is_of_one_kind(&self) -> bool {
        self.one_kind_until.is_some()
    }

    /// A batch of several kinds failed as a whole.
    pub(super) fn mixed_failed(&mut self, now: Instant) {
        self.one_kind_until = Some(now + APART);
    }

    /// Whether this record can go in a batch at all.
    pub(super) fn fits(&self, record: &Record) -> bool {
        EMPTY + group_size(record) + size(record) <= self.settings.max_bytes
    }

    /// Builds the body of a batch that is about to be sent.
    pub(super) fn body(&mut self, parcel: &[Group]) -> BatchBody {
        self.is_trying = true;
        let is_plain = items(parcel).any(|item| item.history.is_plain);
        let encoding = if is_plain { Encoding::Identity } else { self.encodings.next() };
        self.encoder.body(parcel, encoding)
    }

    /// Notes that a batch was answered, `with_results` or without.
    pub(super) fn answered(&mut self, with_results: bool) {
        self.is_trying = false;
        self.is_proven |= with_results;
    }

    /// The `ControlPlane` does not support batches. True if they are turned off, false if the mode requires them.
    pub(super) fn absent(&mut self, now: Instant) -> bool {
        if self.settings.mode != DeliveryMode::Auto {
            return false;
        }
        if self.absent_until.is_none() {
            tracing::info!("the ControlPlane does not accept batches; sending records one by one");
        }
        self.absent_until = Some(now + ASK_AGAIN);
        self.is_proven = false;
        true
    }

    /// The `ControlPlane` accepted a record after failing an earlier one of its session.
    pub(super) fn breached(&mut self, now: Instant) {
        self.breached_until = Some(now + ASK_AGAIN);
    }

    /// Forgets what was learned when the link is up again: earlier answers may not have been the `ControlPlane`'s.
    pub(super) fn ask_again(&mut self) {
        self.absent_until = None;
        self.breached_until = None;
        self.one_kind_until = None;
        self.reduced = None;
        self.encodings.ask_again();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_halved_until_they_pass_and_tried_whole_again_later() {
        let settings = Settings {
            mode: DeliveryMode::Batch,
            max_records: 100,
            max_bytes: 1 << 20,
            compression: Compression::None,
        };
        let (mut batching, now) = (Batching::new(settings), Instant::now());
        let most = |batching: &Batching| batching.limits(usize::MAX).1;
        batching.reduce(1 << 20, now);
        batching.reduce(1 << 19, now);
        assert_eq!(most(&batching), 1 << 18);
        // A larger one that was under way already.
        batching.reduce(1 << 20, now + ASK_AGAIN / 2);
        assert!(batching.is_on(now + ASK_AGAIN));
        assert_eq!(most(&batching), 1 << 18);
        assert!(batching.is_on(now + ASK_AGAIN * 3 / 2));
        assert_eq!(most(&batching), 1 << 20);
    }
}
