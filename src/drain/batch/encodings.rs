//! Which encoding of a body gets through, as learned from the answers.

use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;

use crate::control_plane::{Accepts, Encoding};

/// How long batches are sent uncompressed after compressed bodies were damaged in transit.
const PLAIN_FOR: Duration = Duration::from_secs(600);
/// Compressed failures, each followed by an uncompressed success, after which batches are sent uncompressed.
const BREAKS_AGAIN: u32 = 2;
/// Events within this time count once.
const ONE_MOMENT: Duration = Duration::from_secs(1);

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

/// The choice of the encoding.
pub(in crate::drain) struct Encodings {
    compression: Compression,
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
}

impl Encodings {
    pub(super) fn new(compression: Compression) -> Self {
        Self {
            compression,
            accepts_zstd: false,
            refused: Vec::new(),
            plain_until: None,
            has_failed_compressed: false,
            broken: 0,
            broken_at: None,
        }
    }

    /// Ends the time without compression when it is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.plain_until.take_if(|until| *until <= now);
    }

    /// Forgets which encodings do not work.
    pub(super) fn ask_again(&mut self) {
        self.plain_until = None;
        self.refused.clear();
    }

    /// The encoding of the next body.
    pub(super) fn next(&self) -> Encoding {
        let takes_zstd = match self.compression {
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
    pub(in crate::drain) fn heard(&mut self, accepts: Accepts) {
        self.accepts_zstd = accepts.zstd;
    }

    /// Notes that a body in this encoding was answered 415, with or without a list of accepted encodings.
    pub(in crate::drain) fn refuses(&mut self, encoding: Encoding, accepts: Option<Accepts>) {
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
    pub(in crate::drain) fn passed(&mut self, encoding: Encoding, now: Instant) {
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
            self.plain_until = Some(now + PLAIN_FOR);
        }
    }

    /// Notes that a batch of this many records failed as a whole after a host had accepted the request. If it also fails
    /// uncompressed, compression is not the cause.
    pub(in crate::drain) fn failed(&mut self, encoding: Encoding, records: usize) {
        if encoding != Encoding::Identity {
            self.has_failed_compressed = true;
        } else if records > 1 && self.plain_until.take().is_some() {
            self.has_failed_compressed = false;
        }
    }
}
