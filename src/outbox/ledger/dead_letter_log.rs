//! Logs a line for each new dead letter: the reason, and where to find it. In a flood some lines, and a count of the rest.
//!
//! The log contains no part of a record. An answer may quote the record in any form, so its text stays in the dead letter,
//! and only its status is logged. The agent's own text about an invalid message names fields and types ("a negative
//! number"), never a value.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};

/// Lines per window.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_mins(1);
/// The longest detail in the log, in bytes: a message may have many faults.
const DETAIL_BYTES: usize = 200;

/// The lines logged in this window.
#[derive(Default)]
pub(crate) struct DeadLetterLog(Mutex<RateWindow>);

#[derive(Default)]
struct RateWindow {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl RateWindow {
    /// Starts the next window when this one is over. Returns the number of letters left out of it.
    fn turn(&mut self, now: Instant) -> u64 {
        if self.begun.is_some_and(|begun| now.saturating_duration_since(begun) < WINDOW) {
            return 0;
        }
        std::mem::take(self).left_out
    }
}

impl DeadLetterLog {
    /// Logs letters that have become durable.
    pub(crate) fn tell(&self, letters: &[DeadLetter]) {
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

    /// Logs how many were left out, once the window is over.
    pub(crate) fn tick(&self, now: Instant) {
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
        detail = detail(letter),
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

/// The logged detail: the faults of an invalid message, or the status of the answer.
fn detail(letter: &DeadLetter) -> Option<&str> {
    let text = &*letter.detail;
    match letter.reason {
        Reason::Invalid => Some(&text[..text.floor_char_boundary(DETAIL_BYTES)]),
        _ => text.split(':').next().filter(|words| words.starts_with("status ")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Result, Write};
    use std::sync::Arc;

    use super::*;
    use crate::record::{Kind, Timestamp};

    fn letter(reason: Reason, detail: &str, bytes: &[u8]) -> DeadLetter {
        DeadLetter {
            id: 7,
            reason,
            detail: detail.to_owned(),
            attempts: 1,
            first_at: Timestamp(0),
            last_at: Timestamp(0),
            payload: Payload::Raw { kind: Kind::Usage, accepted_at: Timestamp(0), bytes: bytes.into() },
        }
    }

    #[derive(Clone, Default)]
    struct CapturedLog(Arc<Mutex<Vec<u8>>>);

    impl Write for CapturedLog {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// The lines logged by `work`.
    fn logged(work: impl FnOnce()) -> Vec<String> {
        let log = CapturedLog::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn of_an_answer_only_the_status_is_logged_however_it_repeats_the_message() {
        let short = r#"{"customer_id":"secret","api_key":"hush"}"#;
        assert!(short.len() < 48);
        let long = format!(r#"{{"customer_id":"{}","n":"\u0041"}}"#, "secret-".repeat(30));
        for message in [short, &long] {
            let escaped = serde_json::to_string(message).unwrap();
            let twice = serde_json::to_string(&escaped).unwrap();
            for echo in [message, &escaped, &twice, "secret", "hush", &message[10..30]] {
                let said = format!("status 422: {{\"error\":\"bad\",\"record\":{echo}}}");
                for reason in [Reason::Refused, Reason::SessionUnknown, Reason::Poison] {
                    let lines = logged(|| tell(&letter(reason, &said, message.as_bytes())));
                    assert!(lines.len() == 1 && lines[0].contains("detail=\"status 422\""), "{lines:?}");
                    assert!(lines[0].contains(&format!("reason=\"{}\"", reason.label())), "{lines:?}");
                    for part in ["secret", "hush", "customer", "bad"] {
                        assert!(!lines[0].contains(part), "{part}: {lines:?}");
                    }
                }
            }
        }
        // A failure without an answer may contain a session's URL: not logged either.
        let lines = logged(|| tell(&letter(Reason::Refused, "no such path: /sessions/secret", b"{}")));
        assert!(!lines[0].contains("secret") && !lines[0].contains("detail="), "{lines:?}");
    }

    #[test]
    fn what_is_wrong_with_a_message_is_logged_and_is_short() {
        let lines = logged(|| tell(&letter(Reason::Invalid, "customer_id: missing", b"{}")));
        assert!(lines[0].contains("detail=\"customer_id: missing\""), "{lines:?}");
        let many = letter(Reason::Invalid, &"é".repeat(500), b"{}");
        assert_eq!(detail(&many).map(str::len), Some(DETAIL_BYTES));
    }

    #[test]
    fn a_flood_is_some_lines_and_a_count() {
        const COUNT: &str = "were left out of the log";
        let log = DeadLetterLog::default();
        let lines = logged(|| log.tell(&vec![letter(Reason::Refused, "no", b"x"); 300]));
        assert_eq!(lines.len(), LINES as usize, "{lines:?}");
        assert!(logged(|| log.tick(Instant::now())).is_empty(), "the minute has not passed");
        let lines = logged(|| log.tick(Instant::now() + WINDOW));
        assert!(lines.len() == 1 && lines[0].contains(COUNT) && lines[0].contains("count=280"), "{lines:?}");
        assert!(logged(|| log.tick(Instant::now() + 2 * WINDOW)).is_empty(), "once");

        // The next window has its own lines.
        let lines = logged(|| log.tell(&[letter(Reason::Refused, "no", b"x")]));
        assert!(lines.len() == 1 && !lines[0].contains(COUNT), "{lines:?}");
    }
}
