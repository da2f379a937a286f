//! Batches: whether usage goes in batches at present, and the bytes of one.

use std::io::Write as _;

use bytes::Bytes;
use clap::ValueEnum;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::Form;
use super::lanes::{Item, LaneKey};
use crate::record::{KEY_NAMESPACE, Record};

/// A `ControlPlane` that had no batches is asked again after this time: it may have been updated.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// Batches share what may go now: with all of it in one, nothing could be prepared while that is under way.
const SHARE: usize = 2;
/// Fewer than this are not shared out: a request costs more than the wait.
const SHARE_FROM: usize = 64;
/// The member that a batch adds to each record. A producer's own of this name would make two.
const KEY_MEMBER: &str = "\"idempotency_key\"";

/// How usage records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryMode {
    /// One a request.
    Single,
    /// Many a request.
    Batch,
    /// Many a request where the `ControlPlane` has that, else one.
    Auto,
}

/// How a batch's body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// `Content-Encoding: gzip`.
    Gzip,
    /// Not at all.
    None,
}

/// How batches are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether there are any.
    pub mode: DeliveryMode,
    /// The most records in one.
    pub max_records: usize,
    /// The most bytes in one, before compression.
    pub max_bytes: usize,
    /// How it is compressed.
    pub compression: Compression,
}

/// Whether usage goes in batches, as the `ControlPlane`'s answers have taught.
pub(super) struct Batching {
    settings: Settings,
    gzip: bool,
    /// There are none until then.
    absent_until: Option<Instant>,
    /// A batch was answered record by record.
    proven: bool,
    /// A batch is under way to find out.
    trying: bool,
}

impl Batching {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            gzip: settings.compression == Compression::Gzip,
            settings,
            absent_until: None,
            proven: false,
            trying: false,
        }
    }

    /// Whether usage goes in batches now.
    pub(super) fn is_on(&mut self, now: Instant) -> bool {
        if self.absent_until.is_some_and(|until| until <= now) {
            self.absent_until = None;
        }
        match self.settings.mode {
            DeliveryMode::Single => false,
            DeliveryMode::Batch => true,
            // Until the first is answered, the others go as they always can.
            DeliveryMode::Auto => self.absent_until.is_none() && (self.proven || !self.trying),
        }
    }

    /// A batch goes out now, in this form.
    pub(super) fn next(&mut self) -> Form {
        self.trying = true;
        Form::Batch { gzip: self.gzip }
    }

    /// A batch has come back, `with_results` or without.
    pub(super) fn answered(&mut self, with_results: bool) {
        self.trying = false;
        self.proven |= with_results;
    }

    /// How many of the records that may go now go in one batch.
    pub(super) fn records(&self, ready: usize) -> usize {
        ready.div_ceil(SHARE).max(SHARE_FROM).min(self.settings.max_records)
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.settings.max_bytes
    }

    /// The `ControlPlane` does not know batches. True if they are given up, false if we were told to insist.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        if self.settings.mode != DeliveryMode::Auto {
            return false;
        }
        if self.absent_until.is_none() {
            tracing::info!("the ControlPlane takes no batches; records go one by one");
        }
        self.absent_until = Some(now + ASK_AGAIN);
        self.proven = false;
        true
    }

    /// The link was down and is up: what it said then may have been anybody's word.
    pub(super) fn ask_again(&mut self) {
        self.absent_until = None;
    }

    /// The `ControlPlane` does not take gzip.
    pub(super) fn stop_compressing(&mut self) {
        if std::mem::replace(&mut self.gzip, false) {
            tracing::info!("the ControlPlane takes no gzip; batches go uncompressed");
        }
    }
}

/// Whether a record can go in a batch at all.
pub(super) fn fits(body: &[u8]) -> bool {
    memchr::memmem::find(body, KEY_MEMBER.as_bytes()).is_none()
}

/// What a batch without records takes, in bytes, and what each record adds.
pub(super) const EMPTY: usize = BEGIN.len() + END.len();
const BEGIN: &[u8] = b"{\"records\":[";
const END: &[u8] = b"]}";

pub(super) fn size(record: &Record) -> usize {
    // Two commas, a colon, and the key in quotation marks; its own brace moves behind them.
    record.body().len() + KEY_MEMBER.len() + 41
}

/// What is sent for a parcel.
pub(super) struct Body {
    pub bytes: Bytes,
    /// Made of the keys inside: the same for the same records in the same order.
    pub key: Uuid,
}

/// The body of a batch. The records' own bytes, each with its key behind them, so that each is the same in whichever
/// batch it travels.
pub(super) fn body(parcel: &[(LaneKey, Item)], gzip: bool) -> Body {
    let size = EMPTY + parcel.iter().map(|(_, item)| size(&item.record)).sum::<usize>();
    let mut plain = Vec::with_capacity(size);
    let mut keys = Vec::with_capacity(parcel.len() * 16);
    plain.extend_from_slice(BEGIN);
    for (n, (_, item)) in parcel.iter().enumerate() {
        let key = item.record.key();
        keys.extend_from_slice(key.as_bytes());
        if n > 0 {
            plain.push(b',');
        }
        // A usage record's body ends with the brace that closes it, behind the members that the agent added.
        let body = item.record.body();
        plain.extend_from_slice(body.strip_suffix(b"}").unwrap_or(body));
        plain.push(b',');
        plain.extend_from_slice(KEY_MEMBER.as_bytes());
        plain.extend_from_slice(b":\"");
        plain.extend_from_slice(key.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        plain.extend_from_slice(b"\"}");
    }
    plain.extend_from_slice(END);
    let bytes = if gzip { compress(&plain) } else { plain };
    Body { bytes: bytes.into(), key: Uuid::new_v5(&KEY_NAMESPACE, &keys) }
}

fn compress(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Level::fast());
    #[expect(clippy::expect_used, reason = "writing to a Vec cannot fail")]
    encoder.write_all(plain).and_then(|()| encoder.finish()).expect("compressing to memory")
}
