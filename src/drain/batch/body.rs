//! Builds the bodies of batches.

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use uuid::Uuid;

use super::layout::{BEGIN, BODY, END, KIND, RECORDS, SESSION};
use crate::control_plane::Encoding;
use crate::drain::queues::{Group, records_in};
use crate::record::KEY_NAMESPACE;

/// A smaller body is not compressed: that would save at most a packet.
pub(super) const COMPRESS_FROM: usize = 1 << 10;
/// zstd level 1 compresses a usage record to 63 bytes in 1.2 µs.
const ZSTD_LEVEL: i32 = 1;
/// gzip level 3 compresses a usage record to 76 bytes in 3.3 µs, level 1 to 112 bytes in 1.6 µs.
const GZIP_LEVEL: u32 = 3;
/// The compression ratio assumed before the first compressed body, and the weight of each new one in its mean.
const FIRST_RATIO: f64 = 0.25;
const RATIO_GAIN: f64 = 0.2;

/// The body of a parcel.
pub(in crate::drain) struct BatchBody {
    pub bytes: Bytes,
    pub encoding: Encoding,
    /// Derived from the keys inside: the same for the same records in the same order.
    pub key: Uuid,
    pub records: usize,
}

/// Builds the bodies of batches with reused encoders and buffers.
#[derive(Default)]
pub(super) struct Encoder {
    plain: Vec<u8>,
    /// Buffer for compression: bodies in flight hold no spare capacity.
    packed: Vec<u8>,
    keys: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    gzip: Option<Compress>,
    /// Recent compression ratio.
    ratio: Option<f64>,
    /// Recent compressed bytes per record.
    pub(super) record_bytes: Option<f64>,
}

impl Encoder {
    /// Recent compressed bytes per byte.
    pub(super) fn ratio(&self) -> f64 {
        self.ratio.unwrap_or(FIRST_RATIO)
    }

    /// Builds the body of a batch. A record's bytes are the same in every batch and alone.
    pub(super) fn body(&mut self, parcel: &[Group], encoding: Encoding) -> BatchBody {
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
        let gzip =
            self.gzip.get_or_insert_with(|| Compress::new_gzip(Compression::new(GZIP_LEVEL), WINDOW_BITS));
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
