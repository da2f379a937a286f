//! What the `ControlPlane` answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use dataplane_agent::control_plane::{
    BadAnswer, Commands, parse_batch_answer, parse_commands, parse_key_set, parse_quota_answer,
};
use dataplane_agent::fuzzing;

const LONGEST: Duration = Duration::from_hours(1);

/// Why an answer is none is said without what was in it: that has a length that no answer can stretch.
fn reticent(error: &BadAnswer) {
    let said = format!("{error} {error:?}");
    assert!(said.len() < 250, "{said}");
}

/// An answer to a quota refresh.
pub fn quota_answer(body: &[u8]) {
    let answer = match parse_quota_answer(body) {
        Ok(answer) => answer,
        Err(error) => return reticent(&error),
    };
    assert!(
        body.windows(answer.data.len()).any(|window| window == answer.data),
        "data is not passed on as it is"
    );
    let Ok(data) = serde_json::from_slice::<Value>(answer.data) else { panic!("data is no JSON") };
    assert_eq!(data["api_session_id"], answer.api_session_id);
    assert_eq!(data["transaction_id"], answer.transaction_id);
    let alone = [br#"{"success":true,"data":"#, answer.data, b"}"].concat();
    assert_eq!(parse_quota_answer(&alone).as_ref(), Ok(&answer));
    let refused = [br#"{"success":false,"data":"#, answer.data, b"}"].concat();
    assert_eq!(parse_quota_answer(&refused), Err(BadAnswer::Unsuccessful));
}

/// An answer to the batch that it names.
pub fn batch_answer(body: &[u8]) {
    let named = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let batch =
        named.pointer("/data/batch").and_then(|batch| batch.as_str()?.parse().ok()).unwrap_or_default();
    let count = named.pointer("/data/count").and_then(Value::as_u64).unwrap_or_default() as usize;
    let exceptions = match parse_batch_answer(body, batch, count) {
        Ok(exceptions) => exceptions,
        Err(error) => return reticent(&error),
    };
    for exception in &exceptions {
        assert!((300..=599).contains(&exception.status) && exception.index < count);
        assert!(exception.error.as_ref().is_none_or(|error| error.len() <= 1024));
    }
    assert!(exceptions.is_sorted_by(|one, other| one.index < other.index), "a position twice");
    let other = Uuid::from_u128(!batch.as_u128());
    assert_eq!(parse_batch_answer(body, other, count), Err(BadAnswer::AnotherBatch));
    let more = count.wrapping_add(1);
    assert_eq!(parse_batch_answer(body, batch, more), Err(BadAnswer::Count { expected: more, found: count }));
}

/// An answer to the question for commands.
pub fn commands(body: &[u8]) {
    #[derive(Deserialize)]
    struct Waiting<'a> {
        #[serde(borrow)]
        commands: Vec<&'a RawValue>,
    }
    let all = match parse_commands(body) {
        Ok(all) => all,
        Err(error) => return reticent(&error),
    };
    assert!(all.commands.iter().all(|command| !command.command_id.is_empty()));
    let Ok(Waiting { commands }) = serde_json::from_slice(body) else { panic!("an answer, but no list") };
    let mut one_by_one = Commands::default();
    for command in commands {
        let alone = format!(r#"{{"commands":[{command}]}}"#);
        match parse_commands(alone.as_bytes()) {
            Ok(Commands { commands, malformed }) => {
                assert_eq!(commands.len() + malformed, 1);
                one_by_one.commands.extend(commands);
                one_by_one.malformed += malformed;
            }
            Err(error) => panic!("{error}: {alone}"),
        }
    }
    assert_eq!(all, one_by_one, "a command's fate depends on the others");
}

/// An answer to the question for keys.
pub fn key_set(body: &[u8]) {
    let set = match parse_key_set(body) {
        Ok(set) => set,
        Err(error) => return reticent(&error),
    };
    let Ok(bare) = serde_json::to_string(&set) else { panic!("a set that cannot be written") };
    let wrapped = format!(r#"{{"success":true,"data":{bare}}}"#);
    for again in [bare, wrapped] {
        assert_eq!(parse_key_set(again.as_bytes()).as_ref(), Ok(&set), "{again}");
    }
}

/// A `Retry-After`, behind four bytes that say what time it is, and four that say what time the peer believes it is.
pub fn retry_after(data: &[u8]) {
    let Some((times, value)) = data.split_at_checked(8) else { return };
    let Ok(value) = str::from_utf8(value) else { return };
    let time = |bytes: &[u8]| {
        let seconds = bytes.iter().fold(0, |seconds, byte| seconds << 8 | u64::from(*byte));
        UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let (now, by_the_peer) = (time(&times[..4]), time(&times[4..]));
    let read = |value: &str, now: SystemTime| fuzzing::retry_after(value, Some(now), UNIX_EPOCH);
    let asked = read(value, now);
    assert_eq!(asked, fuzzing::retry_after(value, None, now), "only where the time is from differs");
    assert_eq!(asked, read(&format!(" {value}\t"), now));
    let Some(asked) = asked else {
        assert!(value.parse::<u64>().is_err() || value.starts_with('+'), "{value} is a number of seconds");
        return;
    };
    assert!(asked <= LONGEST);
    assert_eq!(read(&asked.as_secs().to_string(), now), Some(asked), "the same, in seconds");
    if let Ok(seconds) = value.parse::<u64>() {
        assert_eq!(asked, Duration::from_secs(seconds).min(LONGEST));
    }
    let is_number = value.trim().trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
    let counted_by_the_peer = read(value, by_the_peer);
    if is_number {
        assert_eq!(counted_by_the_peer, Some(asked), "seconds are the same by any clock");
    } else if !asked.is_zero() && asked < LONGEST {
        let until = httpdate::fmt_http_date(now + asked);
        assert_eq!(
            (read(&until, now), read(&until, by_the_peer)),
            (Some(asked), counted_by_the_peer),
            "the same, as a date"
        );
    }
}
