//! A line in the log for each new dead letter: why, and where to find it. In a flood some lines, and a count of the rest.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{DeadLetter, Payload};

/// So many lines in so long.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_mins(1);
/// The longest detail in the log, in bytes: an answer may be long.
const DETAIL_BYTES: usize = 200;
/// An answer that repeats about so many bytes of the record is not logged: no record body ever is.
const ECHO_BYTES: usize = 48;

/// What was logged in this window.
#[derive(Default)]
pub(super) struct LetterLog(Mutex<Window>);

#[derive(Default)]
struct Window {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Window {
    /// Begins the next window when this one has passed. Gives how many letters were left out of it.
    fn turn(&mut self, now: Instant) -> u64 {
        if self.begun.is_some_and(|begun| now.saturating_duration_since(begun) < WINDOW) {
            return 0;
        }
        std::mem::take(self).left_out
    }
}

impl LetterLog {
    /// These have become durable.
    pub(super) fn tell(&self, letters: &[DeadLetter]) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for letter in letters {
            tell_left_out(window.turn(Instant::now()));
            window.begun.get_or_insert_with(Instant::now);
            if window.lines < LINES {
                window.lines += 1;
                tell(letter);
            } else {
                window.left_out += 1;
            }
        }
    }

    /// Says how many were left out, when their time has passed.
    pub(super) fn tick(&self, now: Instant) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tell_left_out(window.turn(now));
    }
}

fn tell(letter: &DeadLetter) {
    let record = match &letter.payload {
        Payload::Record(record) => Some(record),
        Payload::Raw { .. } => None,
    };
    let key = record.map(|record| record.key().to_string());
    let correlation_id = record.map(|record| record.correlation_id());
    tracing::warn!(
        correlation_id = correlation_id.as_deref(),
        reason = letter.reason.label(),
        detail = &*detail(letter),
        dead_letter_id = letter.id,
        queue = letter.kind().queue().label(),
        idempotency_key = key,
        "dead letter: a message will not be delivered; see `dead-letters show`"
    );
}

fn tell_left_out(count: u64) {
    if count > 0 {
        tracing::warn!(
            count,
            "dead letters of the last minute were left out of the log: `dead-letters list` has them all"
        );
    }
}

fn detail(letter: &DeadLetter) -> Cow<'_, str> {
    let text = &letter.detail;
    let repeats = |part: &[u8]| memchr::memmem::find(text.as_bytes(), part).is_some();
    if letter.original().chunks_exact(ECHO_BYTES).any(repeats) {
        let begin = text.split(['{', '<']).next().unwrap_or_default();
        let begin = &begin[..begin.floor_char_boundary(ECHO_BYTES)];
        return format!("{begin}(repeats the message: see the dead letter)").into();
    }
    if text.len() <= DETAIL_BYTES {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(DETAIL_BYTES)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Reason;
    use crate::record::{Kind, Timestamp};

    fn letter(detail: &str, bytes: &[u8]) -> DeadLetter {
        DeadLetter {
            id: 7,
            reason: Reason::Refused,
            detail: detail.to_owned(),
            attempts: 1,
            first_at: Timestamp(0),
            last_at: Timestamp(0),
            payload: Payload::Raw { kind: Kind::Usage, accepted_at: Timestamp(0), bytes: bytes.into() },
        }
    }

    #[test]
    fn a_detail_is_short_and_repeats_no_message() {
        assert_eq!(detail(&letter("status 422: no such customer", b"{}")), "status 422: no such customer");
        let long = detail(&letter(&"x".repeat(5000), b"{}")).into_owned();
        assert!(long.len() <= DETAIL_BYTES + 3, "{long}");
        let body = format!("{{\"customer_id\":\"{}\"}}", "secret-".repeat(30));
        let echo = format!("status 422: {{\"error\":\"bad\",\"record\":{body}}}");
        let said = detail(&letter(&echo, body.as_bytes())).into_owned();
        assert!(said.starts_with("status 422: (") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn a_flood_is_some_lines_and_a_count() {
        let log = LetterLog::default();
        log.tell(&vec![letter("no", b"x"); 300]);
        let count = |log: &LetterLog| {
            let window = log.0.lock().unwrap();
            (window.lines, window.left_out)
        };
        assert_eq!(count(&log), (LINES, 300 - u64::from(LINES)));
        log.tick(Instant::now());
        assert_eq!(count(&log).1, 300 - u64::from(LINES), "the minute has not passed");
        log.tick(Instant::now() + WINDOW);
        assert_eq!(count(&log), (0, 0), "it was said");
    }
}
