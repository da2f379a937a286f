//! Goal: every malformed sample becomes a dead letter with its exact bytes and a reason, and later messages are delivered.
//! Method: all samples, bad and good mixed, through a real agent.

use std::collections::BTreeMap;

use dataplane_agent::record::Queue;
use serde_json::value::RawValue;

use super::harness::{DEAD_LETTERS, LIFECYCLE, QUOTA, Stage, USAGE, until};
use super::samples::{Sample, bad, good, reasons};

#[derive(serde::Deserialize)]
struct Mirrored<'a> {
    #[serde(borrow)]
    original_message: &'a RawValue,
    error_info: String,
    processing_queue: String,
}

fn name(queue: Queue) -> &'static str {
    match queue {
        Queue::Usage => USAGE,
        Queue::Lifecycle => LIFECYCLE,
        Queue::Quota => QUOTA,
    }
}

/// The nesting depth of JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The mirror's form of these bytes: the JSON itself, or a string if they are not JSON.
fn mirrored(bytes: &[u8]) -> String {
    match serde_json::from_slice::<&RawValue>(bytes) {
        Ok(json) if depth(bytes) <= 64 => json.get().to_owned(),
        _ => serde_json::to_string(&String::from_utf8_lossy(bytes)).expect("a string"),
    }
}

#[tokio::test]
async fn bad_samples_become_dead_letters_and_good_ones_are_delivered() {
    let mut stage = Stage::set().await;
    let (good, bad, reasons) = (good(), bad(), reasons());
    for n in 0..good.len().max(bad.len()) {
        for Sample { queue, bytes, .. } in bad.get(n).into_iter().chain(good.get(n)) {
            stage.redis.push(name(*queue), &[bytes]).await;
        }
    }
    stage.drained().await;
    let accounts = stage.sandbox.accounts().await;
    let (processed, again) = (accounts.processed(), accounts.sum("duplicates"));
    assert_eq!(processed + again, good.len() as u64, "{accounts:?}");
    let letters = until("every dead letter is mirrored", async || {
        let letters = stage.redis.list(DEAD_LETTERS).await;
        (letters.len() == bad.len()).then_some(letters)
    })
    .await;
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for letter in &letters {
        let letter = std::str::from_utf8(letter).expect("text");
        let Mirrored { original_message, error_info, processing_queue } =
            serde_json::from_str(letter).unwrap_or_else(|error| panic!("{error}: {letter}"));
        let key = (processing_queue, original_message.get().to_owned());
        found.entry(key).or_default().push(error_info);
    }
    for sample in &bad {
        let key = (name(sample.queue).to_owned(), mirrored(&sample.bytes));
        let reason = &reasons[&sample.name];
        let told = found.get(&key).unwrap_or_else(|| panic!("{} is not among the dead letters", sample.name));
        assert!(told.contains(reason), "{}: {told:?} is not {reason:?}", sample.name);
    }
    stage.agent.metrics().await.assert_conserved();
}
