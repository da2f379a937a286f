//! What an agent is answered, and what its operators give it.

use std::collections::BTreeMap;
use std::io::Write as _;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use dataplane_agent::admin::{LetterFilter, Selection};
use dataplane_agent::control_plane::{Asked, Meaning, Said, meaning};
use dataplane_agent::fuzzing::{decode, dotenv_values, import_line_again};
use dataplane_agent::outbox::{Accept, check_lines};

/// The most of an answer that is read here.
const ANSWER_MAX: usize = 64 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What an answer means: two bytes for its status, one of flags, and its body.
pub fn answer(data: &[u8]) {
    let [high, low, flags, body @ ..] = data else { return };
    let status = 100 + u16::from_be_bytes([*high, *low]) % 500;
    let said = Said {
        status,
        has_retry_after: flags & 1 > 0,
        has_foreign_id: flags & 2 > 0,
        body,
        truncated: flags & 4 > 0,
    };
    let asked = Asked { correlation_id: "c-1", transaction_id: Some("t-1"), ..Asked::default() };
    let means = meaning(&asked, &said);
    let object = serde_json::from_slice::<BTreeMap<String, Value>>(body).ok().filter(|_| !said.truncated);
    let is_its_own = body.is_empty() || object.is_some();
    match means {
        Meaning::Delivered if status == 204 => {}
        Meaning::Delivered => {
            assert!((200..=202).contains(&status), "{status} delivers");
            let Some(object) = object else { panic!("what is no JSON object delivers") };
            assert_ne!(object.get("success"), Some(&Value::Bool(false)), "a failure delivers");
            let other =
                |name, ours: &str| object.get(name).and_then(Value::as_str).is_some_and(|id| id != ours);
            assert!(!other("transaction_id", "t-1"), "another request's answer delivers");
        }
        Meaning::Duplicate => assert!(status == 409 && is_its_own && !said.has_retry_after),
        Meaning::Refused => assert!(matches!(status, 400 | 414 | 415 | 422) && is_its_own || status == 413),
        Meaning::InProgress => assert!(status == 409 && said.has_retry_after),
        Meaning::NotFound => assert!(matches!(status, 404 | 410)),
        _ => {}
    }
    if said.has_foreign_id {
        assert_eq!(means, Meaning::Mismatched);
    }
    if matches!(status, 408 | 425 | 429 | 503) {
        assert!(matches!(means, Meaning::Overloaded | Meaning::Mismatched));
    }
}

/// An encoded answer: a byte for its encodings, and its bytes.
pub fn encoded_answer(data: &[u8]) {
    let Some((which, raw)) = data.split_first() else { return };
    let raw = &raw[..raw.len().min(ANSWER_MAX)];
    let encodings = ["gzip", "zstd", "gzip, zstd", "x-gzip,,identity", "zstd, gzip, gzip, gzip", "br", ""];
    let encoding = encodings[usize::from(*which) % encodings.len()];
    let read = |encoding: &str, body: &[u8], truncated| {
        decode(encoding.as_bytes(), Bytes::copy_from_slice(body), truncated, ANSWER_MAX)
    };
    for truncated in [false, true] {
        let (body, is_more) = read(encoding, raw, truncated);
        assert!(body.len() <= ANSWER_MAX);
        assert!(is_more || !truncated, "what was cut off is whole now");
    }
    // What was encoded comes back, but for a byte order mark.
    let plain = if raw.starts_with(BYTE_ORDER_MARK) { &raw[3..] } else { raw };
    for (encoding, body) in [("gzip", gzip(raw)), ("zstd", zstd(raw)), ("gzip, zstd", zstd(&gzip(raw)))] {
        let (body, is_more) = read(encoding, &body, false);
        assert!(body == plain && !is_more, "{encoding}");
    }
}

/// In memory nothing goes wrong.
fn written<T>(result: std::io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    written(encoder.write_all(plain));
    written(encoder.finish())
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    written(zstd::stream::encode_all(plain, 1))
}

/// A file that is imported.
pub fn import(data: &[u8]) {
    let whole = check_lines(data, Accept::Whole);
    let incomplete = check_lines(data, Accept::Incomplete);
    if let Ok(checked) = &whole {
        let Ok(again) = &incomplete else { panic!("a whole file is refused where a part would do") };
        assert_eq!((again.exports.len(), again.is_incomplete), (checked.exports.len(), false));
    }
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        // What is taken in is exported as a line that is taken in as the same.
        if let Some(exported) = import_line_again(line) {
            assert_eq!(import_line_again(&exported).as_ref(), Some(&exported));
        }
    }
}

/// A `.env` file.
pub fn dotenv(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let environment = |name: &str| name.len().is_multiple_of(2).then(|| format!("<{name}>"));
    let values = dotenv_values(text, environment);
    let lines = text.matches('\n').count() + 1;
    assert!(values.len() <= lines, "more values than lines");
    for (name, value) in values {
        assert_eq!(name, name.to_ascii_uppercase());
        if value.contains("${") {
            continue;
        }
        let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
        // At the very beginning a byte order mark would not be the name's.
        let again = dotenv_values(&format!("\n{name}='{quoted}'\n"), |_| None);
        assert_eq!(again.get(&name), Some(&value), "quoted, it is another value");
    }
}

/// A body for the admin API.
pub fn admin_body(data: &[u8]) {
    fn again<T: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
        let read: T = serde_json::from_slice(data).ok()?;
        let Ok(written) = serde_json::to_vec(&read) else { panic!("{read:?} cannot be written") };
        match serde_json::from_slice::<T>(&written) {
            Ok(same) => assert_eq!(same, read),
            Err(error) => panic!("{error}: {read:?}"),
        }
        Some(read)
    }
    if let Some(selection) = again::<Selection>(data) {
        let ways = [!selection.ids.is_empty(), selection.reason.is_some(), selection.all];
        let is_one = ways.into_iter().filter(|way| *way).count() == 1;
        assert_eq!(selection.fault().is_none(), is_one && selection.ids.len() <= 500, "{selection:?}");
    }
    if let Some(filter) = again::<LetterFilter>(data) {
        let length = filter.text.as_ref().map_or(0, String::len);
        assert_eq!(filter.fault().is_some(), length > 400);
    }
}
