//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::record::Timestamp;

/// Now.
pub fn now() -> Timestamp {
    let micros = |duration: std::time::Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Timestamp(match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    })
}
