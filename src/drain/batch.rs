//! Batches: whether records are sent in batches now, in which encoding, and a batch's body.

use std::num::NonZeroUsize;

use bytes::Bytes;
use clap::ValueEnum;
use flate2::{Compress, Compression as Level, FlushCompress, Status};
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::queues::{Group, records_in};
use crate::control_plane::{Accepts, Encoding};
use crate::record::{KEY_NAMESPACE, Record};

/// When to try again after a `ControlPlane` had no batches or broke their promise, or after compressed bodies were damaged
/// in transit.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// How long types are sent separately after a batch of several types failed as a whole.
const APART: Duration = Duration::from_secs(60);
/// A smaller body is not compressed: that would save at most a packet.
const COMPRESS_FROM: usize = 1 << 10;
/// zstd level 1 compresses a usage record to 63 bytes in 1.2 µs.
const ZSTD_LEVEL: i32 = 1;
/// gzip level 3 compresses a usage record to 76 bytes in 3.3 µs, level 1 to 112 bytes in 1.6 µs.
const GZIP_LEVEL: u32 = 3;
/// Compressed failures, each followed by an uncompressed success, after which batches are sent uncompressed.
const BREAKS_AGAIN: u32 = 2;
/// Events within this time count once.
const ONE_MOMENT: Duration = Duration::from_secs(1);
/// The compression ratio assumed before the first compressed body, and the weight of each new one in its mean.
const FIRST_RATIO: f64 = 0.25;
const RATIO_GAIN: f64 = 0.2;

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

/// How batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// zstd if an answer's `Accept-Encoding` lists it, else gzip.
    Auto,
    /// `Content-Encoding: zstd`.
    Zstd,
    /// `Content-Encoding: gzip`.
    Gzip,
    /// Not at all.
    None,
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

/// Whether records are sent in batches, and how, as learned from the `ControlPlane`'s answers.
pub(super) struct Batching {
    settings: Settings,
    /// Maximum bytes in a batch, as learned from 413 answers.
    max_bytes: usize,
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
    accepts_zstd: bool,
    /// Encodings that were answered 415.
    refused: Vec<Encoding>,
    /// Compressed bodies failed and uncompressed ones succeeded: uncompressed until then.
    plain_until: Option<Instant>,
    /// A batch failed compressed, and nothing that counts has succeeded since.
    has_failed_compressed: bool,
    /// How often in a row that has happened, each time followed by an uncompressed success.
    broken: u32,
    broken_at: Option<Instant>,
    encoder: Encoder,
}

impl Batching {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            max_bytes: settings.max_bytes,
            settings,
            absent_until: None,
            breached_until: None,
            one_kind_until: None,
            is_proven: false,
            is_trying: false,
            accepts_zstd: false,
            refused: Vec::new(),
            plain_until: None,
            has_failed_compressed: false,
            broken: 0,
            broken_at: None,
            encoder: Encoder::default(),
        }
    }

    /// Whether records go in batches now.
    pub(super) fn is_on(&mut self, now: Instant) -> bool {
        let until = [
            &mut self.absent_until,
            &mut self.breached_until,
            &mut self.one_kind_until,
            &mut self.plain_until,
        ];
        for until in until {
            until.take_if(|until| *until <= now);
        }
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
        (self.settings.max_records, plain.max(COMPRESS_FROM).min(self.max_bytes))
    }

    /// The approximate wire bytes of the largest batch.
    pub(super) fn largest(&self) -> f64 {
        let of_records = self.settings.max_records as f64 * self.encoder.record_bytes.unwrap_or(f64::MAX);
        of_records.min(self.max_bytes as f64 * self.encoder.ratio())
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

    /// A body was too large: use smaller ones from now on.
    pub(super) fn too_large(&mut self, parcel: &[Group]) {
        let items = || parcel.iter().flat_map(|group| &group.items);
        let bytes: usize = items().map(|item| size(&item.record)).sum();
        self.max_bytes = self.max_bytes.min((bytes / 2).max(COMPRESS_FROM));
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
        let is_plain = parcel.iter().flat_map(|group| &group.items).any(|item| item.history.is_plain);
        let encoding = if is_plain { Encoding::Identity } else { self.encoding() };
        self.encoder.body(parcel, encoding)
    }

    fn encoding(&self) -> Encoding {
        let takes_zstd = match self.settings.compression {
            _ if self.plain_until.is_some() => return Encoding::Identity,
            Compression::None => return Encoding::Identity,
            Compression::Zstd => true,
            Compression::Gzip => false,
            Compression::Auto => self.accepts_zstd,
        };
        let wanted = if takes_zstd { Encoding::Zstd } else { Encoding::Gzip };
        let may = |encoding: &Encoding| !self.refused.contains(encoding);
        [wanted, Encoding::Gzip].into_iter().find(may).unwrap_or(Encoding::Identity)
    }

    /// Notes the accepted encodings listed in an answer.
    pub(super) fn heard(&mut self, accepts: Accepts) {
        self.accepts_zstd = accepts.zstd;
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
        self.plain_until = None;
        self.max_bytes = self.settings.max_bytes;
        self.refused.clear();
    }

    /// Notes that a body in this encoding was answered 415, with or without a list of accepted encodings.
    pub(super) fn refuses(&mut self, encoding: Encoding, accepts: Option<Accepts>) {
        tracing::info!(
            ?encoding,
            "the ControlPlane does not accept this encoding; using another for batches"
        );
        self.refused.push(encoding);
        // Without a list: no encoding is accepted.
        let accepts = accepts.unwrap_or_default();
        for (other, is_taken) in [(Encoding::Gzip, accepts.gzip), (Encoding::Zstd, accepts.zstd)] {
            if !is_taken && !self.refused.contains(&other) {
                self.refused.push(other);
            }
        }
    }

    /// Notes that a batch in this encoding was answered record by record. If compressed batches repeatedly fail and
    /// uncompressed ones succeed in between, something in transit damages compressed bodies.
    pub(super) fn passed(&mut self, encoding: Encoding, now: Instant) {
        if encoding != Encoding::Identity {
            self.has_failed_compressed = false;
            self.broken = 0;
            return;
        }
        // Several requests in flight may report the same event.
        let is_same = self.broken_at.is_some_and(|at| now.saturating_duration_since(at) < ONE_MOMENT);
        if is_same || !std::mem::take(&mut self.has_failed_compressed) {
            return;
        }
        self.broken_at = Some(now);
        self.broken += 1;
        if self.broken >= BREAKS_AGAIN {
            self.broken = 0;
            tracing::warn!(
                "compressed batches fail while uncompressed requests succeed; sending batches uncompressed for ten minutes"
            );
            self.plain_until = Some(now + ASK_AGAIN);
        }
    }

    /// Notes that a batch of this many records failed as a whole after a host had accepted the request. If it also fails
    /// uncompressed, compression is not the cause.
    pub(super) fn failed(&mut self, encoding: Encoding, records: usize) {
        if encoding != Encoding::Identity {
            self.has_failed_compressed = true;
        } else if records > 1 && self.plain_until.take().is_some() {
            self.has_failed_compressed = false;
        }
    }
}

/// Bytes of a batch without sessions.
pub(super) const EMPTY: usize = BEGIN.len() + END.len();
const BEGIN: &[u8] = br#"{"sessions":["#;
const END: &[u8] = b"]}";
const SESSION: &[u8] = br#"{"api_session_id":"#;
const RECORDS: &[u8] = br#","records":["#;
const KIND: &[u8] = br#"{"kind":""#;
const BODY: &[u8] = br#"","body":"#;

/// Bytes that a record adds to a batch: body, kind, and the JSON around them.
pub(super) fn size(record: &Record) -> usize {
    record.body().len() + record.kind().name().len() + KIND.len() + BODY.len() + 2
}

/// Maximum bytes that its session adds: each character of the name may take six.
pub(super) fn group_size(record: &Record) -> usize {
    SESSION.len() + RECORDS.len() + 6 * record.session().len() + 5
}

/// The body of a parcel.
pub(super) struct BatchBody {
    pub bytes: Bytes,
    pub encoding: Encoding,
    /// Derived from the keys inside: the same for the same records in the same order.
    pub key: Uuid,
    pub records: usize,
}

/// Builds the bodies of batches with reused encoders and buffers.
#[derive(Default)]
struct Encoder {
    plain: Vec<u8>,
    /// Buffer for compression: bodies in flight hold no spare capacity.
    packed: Vec<u8>,
    keys: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    gzip: Option<Compress>,
    /// Recent compression ratio.
    ratio: Option<f64>,
    /// Recent compressed bytes per record.
    record_bytes: Option<f64>,
}

impl Encoder {
    fn ratio(&self) -> f64 {
        self.ratio.unwrap_or(FIRST_RATIO)
    }

    /// Builds the body of a batch. A record's bytes are the same in every batch and alone.
    fn body(&mut self, parcel: &[Group], encoding: Encoding) -> BatchBody {
        self.write(parcel);
        let key = Uuid::new_v5(&KEY_NAMESPACE, &self.keys);
        let records = records_in(parcel);
        let packed = match encoding {
            _ if self.plain.len() < COMPRESS_FROM => None,
            Encoding::Zstd => self.zstd(),
            Encoding::Gzip => self.gzip(),
            Encoding::Identity => None,
        };
        let (bytes, encoding) = match packed {
            Some(()) => (&self.packed, encoding),
            None => (&self.plain, Encoding::Identity),
        };
        if self.plain.len() >= COMPRESS_FROM {
            let ratio = (bytes.len() as f64 / self.plain.len() as f64).clamp(0.01, 1.0);
            follow(&mut self.ratio, ratio);
        }
        follow(&mut self.record_bytes, bytes.len() as f64 / records.max(1) as f64);
        BatchBody { bytes: Bytes::copy_from_slice(bytes), encoding, key, records }
    }

    fn write(&mut self, parcel: &[Group]) {
        let (plain, keys) = (&mut self.plain, &mut self.keys);
        plain.clear();
        keys.clear();
        plain.extend_from_slice(BEGIN);
        for (n, group) in parcel.iter().enumerate() {
            let Some(first) = group.items.first() else { continue };
            if n > 0 {
                plain.push(b',');
            }
            plain.extend_from_slice(SESSION);
            write_string(plain, first.record.session());
            plain.extend_from_slice(RECORDS);
            for (n, item) in group.items.iter().enumerate() {
                if n > 0 {
                    plain.push(b',');
                }
                plain.extend_from_slice(KIND);
                plain.extend_from_slice(item.record.kind().name().as_bytes());
                plain.extend_from_slice(BODY);
                plain.extend_from_slice(item.record.body());
                plain.push(b'}');
                keys.extend_from_slice(item.record.key().as_bytes());
            }
            plain.extend_from_slice(END);
        }
        plain.extend_from_slice(END);
    }

    fn zstd(&mut self) -> Option<()> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.plain.len()));
        self.zstd.as_mut()?.compress_to_buffer(&self.plain, &mut self.packed).ok()?;
        Some(())
    }

    fn gzip(&mut self) -> Option<()> {
        const WINDOW_BITS: u8 = 15;
        let gzip = self.gzip.get_or_insert_with(|| Compress::new_gzip(Level::new(GZIP_LEVEL), WINDOW_BITS));
        gzip.reset();
        let out = &mut self.packed;
        out.clear();
        out.reserve(self.plain.len() / 3 + 1024);
        loop {
            let read = gzip.total_in() as usize;
            let status = gzip.compress_vec(&self.plain[read..], out, FlushCompress::Finish).ok()?;
            if status == Status::StreamEnd {
                return Some(());
            }
            out.reserve(out.capacity());
        }
    }
}

/// Updates a moving mean.
fn follow(mean: &mut Option<f64>, now: f64) {
    let before = mean.unwrap_or(now);
    *mean = Some(before + (now - before) * RATIO_GAIN);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    #[expect(clippy::expect_used, reason = "writing a str to a Vec cannot fail")]
    serde_json::to_writer(out, text).expect("a string has a form in JSON");
}
