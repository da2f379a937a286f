//! What waits in Redis when a row begins.

use serde_json::{Value, json};

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
    /// Usage records of 400 bytes, of so many sessions in turn.
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
            Self::Usage { sessions } => usage(sessions, &load::usage).await,
            Self::Unordered => {
                usage(20, &|session, n| changed(session, n, |record| drop(record.remove("sequence")))).await
            }
            Self::Noise => {
                usage(SESSIONS, &|session, n| {
                    changed(session, n, |record| drop(record.insert("noise".to_owned(), noise().into())))
                })
                .await
            }
            Self::Whole => whole(redis, records / (USAGE_EACH + 2)).await,
        }
    }
}

fn changed(session: &str, number: u32, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    let mut record: Value = serde_json::from_str(&load::usage(session, number)).expect("JSON");
    change(record.as_object_mut().expect("an object"));
    json!(record).to_string()
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
        let messages: Vec<String> =
            numbers.flat_map(|n| (0..USAGE_EACH).map(move |number| load::usage(&name(n), number))).collect();
        redis.push(USAGE, &messages).await;
    }
    redis.push(LIFECYCLE, &each(load::completed)).await;
    u64::from(sessions) * u64::from(USAGE_EACH + 2)
}
