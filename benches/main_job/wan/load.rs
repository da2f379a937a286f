//! What waits in Redis when a row begins.

use rand::RngExt as _;
use serde_json::json;
use uuid::Uuid;

use super::super::harness::{LIFECYCLE, RedisServer, USAGE, load};

/// Usage records of each whole session, between its two events.
const USAGE_EACH: u32 = 8;
const SESSIONS: u32 = 200;
/// What cannot be compressed away of a large record. As base64 it is a third longer, which compression takes back.
pub(super) const NOISE_BYTES: f64 = 4096.0;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// So many are pushed at once.
const PART: u32 = 100_000;

/// The kinds of load.
#[derive(Clone, Copy)]
pub(super) enum Load {
    /// Usage records of 400 bytes, as various as real ones, of so many sessions in turn.
    Usage { sessions: u32 },
    /// The same of 20 sessions, without a sequence, for order is not asked for.
    Unordered,
    /// Usage records with 4 KB of noise each.
    Noise,
    /// Sessions from their start to their end.
    Whole,
}

impl Load {
    /// Pushes it. Gives how many records that are.
    pub(super) async fn push(self, redis: &RedisServer, records: u32) -> u64 {
        let usage = async |sessions: u32, each: &dyn Fn(&str, u32) -> String| {
            for part in 0..records.div_ceil(PART) {
                let numbers = part * PART..((part + 1) * PART).min(records);
                let messages: Vec<String> =
                    numbers.map(|n| each(&format!("session-{}", n % sessions), n / sessions)).collect();
                redis.push(USAGE, &messages).await;
            }
            u64::from(records)
        };
        match self {
            Self::Usage { sessions } => usage(sessions, &|session, n| record(session, Some(n), None)).await,
            Self::Unordered => usage(20, &|session, _| record(session, None, None)).await,
            Self::Noise => usage(SESSIONS, &|session, n| record(session, Some(n), Some(noise()))).await,
            Self::Whole => whole(redis, records / (USAGE_EACH + 2)).await,
        }
    }
}

/// A usage record that compresses as real ones do, to some 65 bytes among others: its id is a UUID, its numbers and times
/// are its own.
pub(crate) fn record(session: &str, sequence: Option<u32>, noise: Option<String>) -> String {
    let mut random = rand::rng();
    let seconds = random.random_range(0.1..30.0_f64);
    let begun = Timestamp::BEGIN + random.random_range(0..Timestamp::DAY);
    let mut record = json!({
        "transaction_id": Uuid::from_u128(random.random()).to_string(),
        "api_session_id": session,
        "customer_id": format!("customer-{}", random.random_range(0..500)),
        "product_code": "speech_transcription",
        "connection_duration_seconds": (seconds * 1e3).round() / 1e3,
        "data_bytes_processed": (seconds * 16_000.0) as u64,
        "audio_duration_seconds": (seconds * 970.0).round() / 1e3,
        "request_count": 1,
        "request_timestamp": Timestamp(begun).to_string(),
        "response_timestamp": Timestamp(begun + (seconds * 1e3) as u64).to_string(),
    });
    if let Some(sequence) = sequence {
        record["sequence"] = sequence.into();
    }
    if let Some(noise) = noise {
        record["noise"] = noise.into();
    }
    record.to_string()
}

/// Milliseconds of a day, as a record has them.
struct Timestamp(u64);

impl Timestamp {
    const BEGIN: u64 = 8 * 3_600_000;
    const DAY: u64 = 8 * 3_600_000;
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(millis) = self;
        let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
        write!(f, "2026-01-01T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", millis % 1000)
    }
}

fn noise() -> String {
    let length = (NOISE_BYTES * 4.0 / 3.0) as usize;
    (0..length).map(|_| char::from(BASE64[rand::random_range(0..BASE64.len())])).collect()
}

/// One session after the other, as short ones come.
async fn whole(redis: &RedisServer, sessions: u32) -> u64 {
    let name = |n: u32| format!("session-{n}");
    let each = |message: fn(&str) -> String| (0..sessions).map(|n| message(&name(n))).collect::<Vec<_>>();
    redis.push(LIFECYCLE, &each(load::started)).await;
    let per_part = PART / USAGE_EACH;
    for part in 0..sessions.div_ceil(per_part) {
        let numbers = part * per_part..((part + 1) * per_part).min(sessions);
        let messages: Vec<String> = numbers
            .flat_map(|n| (0..USAGE_EACH).map(move |number| record(&name(n), Some(number), None)))
            .collect();
        redis.push(USAGE, &messages).await;
    }
    redis.push(LIFECYCLE, &each(load::completed)).await;
    u64::from(sessions) * u64::from(USAGE_EACH + 2)
}
