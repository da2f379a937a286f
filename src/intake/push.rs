//! Writes to Redis: answers to quota refreshes, and the mirror of dead letters.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};

use super::Settings;
use super::connection::{Connection, connect};
use super::fault::{is_refusal, reason_of};
use crate::outbox::QuotaReply;
use crate::outbox::{DeadLetter, Outbox};
use crate::record::MAX_DEPTH;
use crate::telemetry::metrics::Metrics;

/// Delay between attempts.
const RETRY: Duration = Duration::from_millis(500);
/// Quota answers pushed in one command.
const PUSH_AT_ONCE: usize = 100;
/// Dead letters mirrored in one command: each may take a MiB, and appears twice.
const MIRROR_AT_ONCE: usize = 8;
/// How often the outbox is asked for new dead letters.
const MIRROR_EVERY: Duration = Duration::from_millis(250);

/// Repeats `commands`, which write to `key`, until Redis has executed them. False if `stop` came first, or they are no
/// longer wanted.
async fn insist(
    settings: &Settings,
    metrics: &Metrics,
    key: &str,
    connection: &mut Option<Connection>,
    commands: &redis::Pipeline,
    is_wanted: impl Fn() -> bool,
    stop: &mut watch::Receiver<bool>,
) -> bool {
    let mut said = false;
    loop {
        let attempt = async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => connect(settings, Duration::ZERO).await?,
            };
            let () = commands.query_async(&mut open).await?;
            *connection = Some(open);
            Ok::<(), redis::RedisError>(())
        };
        match attempt.await {
            Ok(()) => return true,
            // The intake reports connection problems; a refusal for this key is seen only here.
            Err(error) if is_refusal(&error) => {
                metrics.redis_failures.with_label_values(&[reason_of(&error)]).inc();
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, key, "Redis refuses writes to this key; retrying until it accepts them");
                }
            }
            Err(error) => tracing::debug!(%error, key, "a write to Redis failed; retrying"),
        }
        if *stop.borrow() || !is_wanted() {
            return false;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(RETRY) => {}
            _ = stop.changed() => {}
        }
    }
}

/// Pushes answers to quota refreshes until the channel closes. Each is confirmed once Redis has it.
pub async fn push_quota_answers(
    settings: Settings,
    metrics: Arc<Metrics>,
    mut answers: mpsc::Receiver<QuotaReply>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connection = None;
    while let Some(first) = answers.recv().await {
        let mut group = vec![first];
        while group.len() < PUSH_AT_ONCE
            && let Ok(next) = answers.try_recv()
        {
            group.push(next);
        }
        let is_wanted = |push: &QuotaReply| !push.done.is_closed();
        group.retain(is_wanted);
        // IMPORTANT: a single command, which Redis executes entirely or not at all. Several commands could be executed in
        // part and then repeated.
        let mut commands = redis::pipe();
        let data: Vec<&[u8]> = group.iter().map(|push| &push.data[..]).collect();
        let key = &settings.names.quota_response;
        commands.lpush(key, data).ignore();
        let is_any_wanted = || group.iter().any(is_wanted);
        if is_any_wanted()
            && insist(&settings, &metrics, key, &mut connection, &commands, is_any_wanted, &mut stop).await
        {
            for push in group {
                // The drain may have stopped meanwhile.
                let _ = push.done.send(());
            }
        }
    }
}

/// Mirrors dead letters to Redis, newest first, capped.
pub struct Mirror {
    /// The destination.
    pub settings: Settings,
    /// The source.
    pub outbox: Outbox,
    /// Maximum length of the mirror; 0: no mirror.
    pub most: usize,
    /// Counts refusals.
    pub metrics: Arc<Metrics>,
}

impl Mirror {
    /// Runs until `stop` is true. The outbox remembers what was mirrored.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        if self.most == 0 {
            // A dropped sender also means stop.
            let _ = stop.wait_for(|stop| *stop).await;
            return;
        }
        let mut connection = None;
        while !*stop.borrow() {
            self.mirror(&mut connection, &mut stop).await;
            tokio::select! {
                biased;
                () = tokio::time::sleep(MIRROR_EVERY) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Mirrors the dead letters that exist now. In a flood the rest waits for the next time: the mirror may be trimmed
    /// again by then.
    async fn mirror(&self, connection: &mut Option<Connection>, stop: &mut watch::Receiver<bool>) {
        let unmirrored = self.outbox.unmirrored();
        let mut from = unmirrored.start.max(unmirrored.end.saturating_sub(self.most as u64));
        while from < unmirrored.end && !*stop.borrow() {
            let letters = match self.outbox.dead_letters(from, MIRROR_AT_ONCE).await {
                Ok(letters) => letters,
                // Unreadable now: retry later.
                Err(error) => {
                    tracing::debug!(%error, "cannot read dead letters for the mirror; retrying");
                    return;
                }
            };
            let Some(last) = letters.last().map(|letter| letter.id) else {
                // Dropped or replayed before they were mirrored, or damaged: skip them.
                self.outbox.set_mirrored(unmirrored.end - 1);
                return;
            };
            let name = &self.settings.names.dead_letters;
            let mut commands = redis::pipe();
            let queue = |letter: &DeadLetter| self.settings.names.queue(letter.kind().queue());
            let mirrored: Vec<Vec<u8>> = letters.iter().map(|letter| render(letter, queue(letter))).collect();
            commands.lpush(name, mirrored).ignore();
            commands.ltrim(name, 0, self.most as isize - 1).ignore();
            if !insist(&self.settings, &self.metrics, name, connection, &commands, || true, stop).await {
                return;
            }
            self.outbox.set_mirrored(last);
            from = last + 1;
        }
    }
}

/// A dead letter in the format of `docs/contract/dead-letters.md`.
fn render(letter: &DeadLetter, queue: &str) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Mirrored<'a> {
        original_message: Original<'a>,
        error_info: &'a str,
        failed_at: String,
        processing_queue: &'a str,
        dead_letter_id: String,
        reason: &'static str,
    }
    #[derive(serde::Serialize)]
    #[serde(untagged)]
    enum Original<'a> {
        Json(&'a RawValue),
        Text(String),
    }
    let bytes = letter.original();
    let original_message = match serde_json::from_slice::<&RawValue>(&bytes) {
        Ok(json) if depth(&bytes) <= MAX_DEPTH => Original::Json(json),
        _ => Original::Text(String::from_utf8_lossy(&bytes).into_owned()),
    };
    let mirrored = Mirrored {
        original_message,
        error_info: &letter.detail,
        failed_at: letter.last_at.to_rfc3339(),
        processing_queue: queue,
        dead_letter_id: letter.id.to_string(),
        reason: letter.reason.label(),
    };
    serde_json::to_vec(&mirrored).unwrap_or_default()
}

/// The nesting depth of JSON. Readers of the mirror recurse, and have their own limit.
fn depth(json: &[u8]) -> u32 {
    let (mut depth, mut deepest) = (0_u32, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

/// Skips to the position after the closing quote.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Payload, Reason};
    use crate::record::{Kind, Timestamp};

    fn original(message: &str) -> serde_json::Value {
        let (bytes, at) = (message.as_bytes().into(), Timestamp(0));
        let letter = DeadLetter {
            id: 1,
            reason: Reason::Invalid,
            detail: String::new(),
            attempts: 0,
            first_at: at,
            last_at: at,
            payload: Payload::Raw { kind: Kind::Usage, accepted_at: at, bytes },
        };
        let mirrored: serde_json::Value = serde_json::from_slice(&render(&letter, "queue")).unwrap();
        mirrored["original_message"].clone()
    }

    #[test]
    fn what_is_nested_deeper_than_64_is_mirrored_as_a_string() {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let nested = |levels: usize| format!("{}0{}", open.repeat(levels), close.repeat(levels));
            assert!(!original(&nested(64)).is_string());
            for levels in [65, 100_000] {
                assert_eq!(original(&nested(levels)), nested(levels));
            }
        }
        // Brackets in strings, and in messages that are not JSON, do not count.
        let text = format!(r#"["{}\"{}", []]"#, "[".repeat(100), "{".repeat(100));
        assert!(original(&text).is_array());
        assert_eq!(depth(text.as_bytes()), 2);
        assert_eq!(original("[[\"\\"), "[[\"\\");
    }
}
