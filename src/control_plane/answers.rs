//! Pure parsers of answer bodies, safe on any bytes. The caller bounds the size.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::secret::Secret;

/// Maximum bytes of a command; known ones are far smaller: a token repeats the parameters, a few KiB.
const COMMAND_MAX_BYTES: usize = 128 << 10;
/// Bytes of commands kept per answer: parsed JSON takes a multiple of its length. Dropped commands are delivered again.
const COMMANDS_KEPT_BYTES: usize = 1 << 20;

/// Bytes of a record's error kept in a dead letter.
const ERROR_MAX_BYTES: usize = 1 << 10;

/// Why an answer is invalid. Errors never quote the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Not JSON, or JSON of another shape.
    #[error("unexpected JSON ({kind:?} at line {line}, column {column})")]
    Json {
        /// Whether the syntax, the data or the end is at fault.
        kind: serde_json::error::Category,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// `success` is not true.
    #[error("\"success\" is not true")]
    Unsuccessful,
    /// A field has the wrong type.
    #[error("{0} has the wrong type")]
    WrongType(&'static str),
    /// The answer is for another batch.
    #[error("it is for another batch")]
    AnotherBatch,
    /// The answer counts another number of records than were sent.
    #[error("it counts {found} records, but {expected} were sent")]
    Count {
        /// How many records were sent.
        expected: usize,
        /// How many the answer counts.
        found: usize,
    },
    /// An exception for a position outside the batch, or given twice.
    #[error("position {index} is outside the batch or given twice")]
    Position {
        /// From 0.
        index: usize,
    },
    /// An exception with a status that is not an error.
    #[error("position {index} has a status that is not an error")]
    Status {
        /// From 0.
        index: usize,
    },
    /// Longer than any expected answer.
    #[error("too long")]
    TooLong,
}

impl From<serde_json::Error> for BadAnswer {
    fn from(e: serde_json::Error) -> Self {
        Self::Json { kind: e.classify(), line: e.line(), column: e.column() }
    }
}

/// The answer to a quota refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaAnswer<'a> {
    /// The session it is for.
    pub api_session_id: String,
    /// The request it answers.
    pub transaction_id: String,
    /// `data`, byte for byte, for the quota response queue.
    pub data: &'a [u8],
}

/// A record of a batch that was not accepted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchException {
    /// Its position among all records of the request, from 0.
    pub index: usize,
    /// The HTTP status it would have got alone, 300 to 599.
    pub status: u16,
    /// What the `ControlPlane` says about it, at most 1 KiB.
    pub error: Option<String>,
}

/// A command from the `ControlPlane`. Unauthenticated until its token is verified.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Command {
    /// Its permanent ID; not empty.
    pub command_id: String,
    /// The type of the command.
    pub command_type: String,
    /// Its parameters; null if absent.
    #[serde(default)]
    pub parameters: Value,
    /// Its time of issue, as sent.
    #[serde(default)]
    pub timestamp: Value,
    /// Its token.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Whether it is too large; then only its ID and type were read.
    #[serde(skip)]
    pub is_oversized: bool,
}

impl Command {
    /// Parses a command from an answer; `None` if it is malformed.
    fn parse(raw: &RawValue) -> Option<Self> {
        /// A command's identifying fields.
        #[derive(Deserialize)]
        struct Label {
            command_id: String,
            command_type: String,
        }
        let raw = raw.get();
        let command = if raw.len() <= COMMAND_MAX_BYTES {
            serde_json::from_str(raw).ok()?
        } else {
            let Label { command_id, command_type } = serde_json::from_str(raw).ok()?;
            Self {
                command_id,
                command_type,
                parameters: Value::Null,
                timestamp: Value::Null,
                token: None,
                is_oversized: true,
            }
        };
        Some(command).filter(|command| !command.command_id.is_empty())
    }
}

/// The waiting commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// In the order of the answer.
    pub commands: Vec<Command>,
    /// Number of malformed commands, which do not block the others.
    pub malformed: usize,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    success: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn data(body: &[u8]) -> Result<&RawValue, BadAnswer> {
    let Envelope { success, data } = serde_json::from_slice(body)?;
    data.filter(|_| success).ok_or(BadAnswer::Unsuccessful)
}

/// Parses the answer to a quota refresh. All five fields are required.
pub fn parse_quota_answer(body: &[u8]) -> Result<QuotaAnswer<'_>, BadAnswer> {
    #[derive(Deserialize)]
    struct Fields {
        api_session_id: String,
        transaction_id: String,
        new_quota_amount: Value,
        final_quota: Value,
        timestamp: Value,
    }
    let data = data(body)?.get();
    // Parsed into a value once: this limits the depth of everything that is forwarded, unknown fields included.
    serde_json::from_str::<Value>(data)?;
    let fields: Fields = serde_json::from_str(data)?;
    if !fields.new_quota_amount.is_number() {
        return Err(BadAnswer::WrongType("new_quota_amount"));
    }
    // The contract names this field without a type: it may be a flag or the final amount.
    if !fields.final_quota.is_boolean() && !fields.final_quota.is_number() {
        return Err(BadAnswer::WrongType("final_quota"));
    }
    if !fields.timestamp.is_string() && !fields.timestamp.is_number() {
        return Err(BadAnswer::WrongType("timestamp"));
    }
    let Fields { api_session_id, transaction_id, .. } = fields;
    Ok(QuotaAnswer { api_session_id, transaction_id, data: data.as_bytes() })
}

/// Parses the answer to the batch with this key and this many records: the records that were not taken, in order. Fails if
/// it answers another batch or has a result out of place: such an answer would settle the wrong records.
pub fn parse_batch_answer(
    body: &[u8],
    batch: Uuid,
    records: usize,
) -> Result<Vec<BatchException>, BadAnswer> {
    #[derive(Deserialize)]
    struct BatchData<'a> {
        batch: Uuid,
        count: usize,
        #[serde(borrow)]
        exceptions: Vec<Exception<'a>>,
    }
    #[derive(Deserialize)]
    struct Exception<'a> {
        index: usize,
        status: u16,
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
    }
    let answer: BatchData<'_> = serde_json::from_str(data(body)?.get())?;
    if answer.batch != batch {
        return Err(BadAnswer::AnotherBatch);
    }
    if answer.count != records {
        return Err(BadAnswer::Count { expected: records, found: answer.count });
    }
    let mut exceptions = Vec::with_capacity(answer.exceptions.len().min(records));
    for Exception { index, status, error } in answer.exceptions {
        if index >= records {
            return Err(BadAnswer::Position { index });
        }
        // Accepted records are not listed: a success status here is a contradiction.
        if !(300..600).contains(&status) {
            return Err(BadAnswer::Status { index });
        }
        exceptions.push(BatchException { index, status, error: error.map(error_text) });
    }
    exceptions.sort_unstable_by_key(|exception| exception.index);
    match exceptions.windows(2).find(|pair| pair[0].index == pair[1].index) {
        Some(pair) => Err(BadAnswer::Position { index: pair[0].index }),
        None => Ok(exceptions),
    }
}

/// Whether an answer to a batch reports all its sessions as unknown.
pub(super) fn knows_no_session(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct BatchData {
        count: usize,
        exceptions: Vec<ExceptionStatus>,
    }
    #[derive(Deserialize)]
    struct ExceptionStatus {
        status: u16,
    }
    let batch = data(body).ok().and_then(|data| serde_json::from_str::<BatchData>(data.get()).ok());
    batch.is_some_and(|BatchData { count, exceptions }| {
        let is_unknown = |entry: &ExceptionStatus| matches!(entry.status, 404 | 410);
        exceptions.len() == count
            && exceptions.iter().any(is_unknown)
            && exceptions.iter().all(|entry| is_unknown(entry) || entry.status == 424)
    })
}

/// An error as text: the string itself, or the JSON of any other value.
fn error_text(error: &RawValue) -> String {
    let mut text = serde_json::from_str(error.get()).unwrap_or_else(|_| error.get().to_owned());
    text.truncate(text.floor_char_boundary(ERROR_MAX_BYTES));
    text
}

/// Parses the waiting commands.
pub fn parse_commands(body: &[u8]) -> Result<Commands, BadAnswer> {
    #[derive(Deserialize)]
    struct Waiting {
        #[serde(deserialize_with = "one_by_one")]
        commands: Commands,
    }
    // An invalid character in one command must not hold up the others.
    let Waiting { commands } = serde_json::from_str(&String::from_utf8_lossy(body))?;
    Ok(commands)
}

/// Parses each command separately: none can block another, and the answer is not in memory twice.
fn one_by_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Commands, D::Error> {
    struct Each;
    impl<'de> Visitor<'de> for Each {
        type Value = Commands;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of commands")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut waiting: A) -> Result<Commands, A::Error> {
            let (mut all, mut kept) = (Commands::default(), 0);
            while let Some(raw) = waiting.next_element::<&RawValue>()? {
                // Skipped commands are not even parsed.
                if kept >= COMMANDS_KEPT_BYTES {
                    continue;
                }
                match Command::parse(raw) {
                    Some(command) => {
                        kept += raw.get().len().min(COMMAND_MAX_BYTES);
                        all.commands.push(command);
                    }
                    None => all.malformed += 1,
                }
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(Each)
}

/// Parses a JWK Set, under `data` or bare. Keys of unknown types are ignored, as RFC 7517 §5 requires.
pub fn parse_key_set(body: &[u8]) -> Result<JwkSet, BadAnswer> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum KeySetAnswer {
        Wrapped { data: Keys },
        Bare(Keys),
    }
    #[derive(Deserialize)]
    struct Keys {
        keys: Vec<Value>,
    }
    let (KeySetAnswer::Wrapped { data: Keys { keys } } | KeySetAnswer::Bare(Keys { keys })) =
        serde_json::from_slice(body)?;
    Ok(JwkSet {
        keys: keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).filter(is_known).collect(),
    })
}

fn is_known(key: &Jwk) -> bool {
    !matches!(key.algorithm, AlgorithmParameters::Other(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTA: &str = r#"{"api_session_id":"s","new_quota_amount": 1.50, "final_quota":false,"transaction_id":"t","timestamp":"2026-11-24T00:00:00Z","more":[1]}"#;

    fn quota(data: &str) -> String {
        format!(r#"{{"success":true,"data":{data},"message":"ok"}}"#)
    }

    #[test]
    fn a_quota_answers_data_is_passed_on_byte_for_byte() {
        let body = quota(QUOTA);
        let answer = parse_quota_answer(body.as_bytes()).unwrap();
        assert_eq!(answer.data, QUOTA.as_bytes());
        assert_eq!((answer.api_session_id.as_str(), answer.transaction_id.as_str()), ("s", "t"));
    }

    #[test]
    fn a_quota_answer_lacking_a_field_is_invalid() {
        for field in ["api_session_id", "new_quota_amount", "final_quota", "transaction_id", "timestamp"] {
            let missing = quota(&QUOTA.replace(field, "other"));
            assert!(parse_quota_answer(missing.as_bytes()).is_err(), "without {field}");
            let mut data: Value = serde_json::from_str(QUOTA).unwrap();
            data[field] = Value::Null;
            assert!(parse_quota_answer(quota(&data.to_string()).as_bytes()).is_err(), "{field} null");
        }
        for body in
            ["", "{}", "null", "[]", r#"{"success":true}"#, r#"{"success":true,"data":null}"#, "<html>"]
        {
            assert!(parse_quota_answer(body.as_bytes()).is_err(), "{body}");
        }
        for flag in ["false", "1", "\"true\"", "null"] {
            let body = format!(r#"{{"success":{flag},"data":{QUOTA}}}"#);
            assert!(parse_quota_answer(body.as_bytes()).is_err(), "success {flag}");
        }
    }

    #[test]
    fn a_deeply_nested_quota_answer_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = quota(&QUOTA.replace("[1]", &deep));
        assert!(matches!(parse_quota_answer(body.as_bytes()), Err(BadAnswer::Json { .. })));
    }

    const BATCH: Uuid = Uuid::from_u128(7);

    fn batch(exceptions: &str) -> Result<Vec<BatchException>, BadAnswer> {
        let data = format!(r#"{{"batch":"{BATCH}","count":3,"exceptions":{exceptions}}}"#);
        parse_batch_answer(format!(r#"{{"success":true,"data":{data}}}"#).as_bytes(), BATCH, 3)
    }

    #[test]
    fn a_batch_answer_lists_the_exceptions_in_any_order() {
        let exceptions =
            batch(r#"[{"index":2,"status":424},{"index":0,"status":422,"error":"no such \"x\""}]"#);
        let expected = [
            BatchException { index: 0, status: 422, error: Some("no such \"x\"".into()) },
            BatchException { index: 2, status: 424, error: None },
        ];
        assert_eq!(exceptions.unwrap(), expected);
        assert_eq!(batch("[]").unwrap(), []);
    }

    #[test]
    fn a_batch_answer_that_fits_another_batch_settles_nothing() {
        let entry = |index: &str| format!(r#"{{"index":{index},"status":503}}"#);
        assert_eq!(batch(&format!("[{}]", entry("3"))), Err(BadAnswer::Position { index: 3 }));
        assert_eq!(batch(&format!("[{0},{0}]", entry("1"))), Err(BadAnswer::Position { index: 1 }));
        for status in ["0", "99", "100", "200", "204", "299", "600", "65535"] {
            let bad = entry("0").replace("503", status);
            assert_eq!(batch(&format!("[{bad}]")), Err(BadAnswer::Status { index: 0 }), "{status}");
        }
        for bad in ["[{\"index\":-1,\"status\":503}]", "[{\"index\":0}]", "[7]", "{}", "null"] {
            assert!(matches!(batch(bad), Err(BadAnswer::Json { .. })), "{bad}");
        }
        let answer = |data: &str| {
            parse_batch_answer(format!(r#"{{"success":true,"data":{data}}}"#).as_bytes(), BATCH, 3)
        };
        let other = Uuid::from_u128(8);
        let of_another = answer(&format!(r#"{{"batch":"{other}","count":3,"exceptions":[]}}"#));
        assert_eq!(of_another, Err(BadAnswer::AnotherBatch));
        let of_more = answer(&format!(r#"{{"batch":"{BATCH}","count":4,"exceptions":[]}}"#));
        assert_eq!(of_more, Err(BadAnswer::Count { expected: 3, found: 4 }));
        assert!(answer(&format!(r#"{{"batch":"{BATCH}","count":3}}"#)).is_err());
        assert!(answer(r#"{"count":3,"exceptions":[]}"#).is_err());
        assert_eq!(
            parse_batch_answer(br#"{"success":false,"data":{}}"#, BATCH, 3),
            Err(BadAnswer::Unsuccessful)
        );
    }

    #[test]
    fn a_records_error_is_kept_as_text_up_to_a_limit() {
        let error = |json: &str| error_text(&RawValue::from_string(json.to_owned()).unwrap());
        assert_eq!(error(r#"{"code": 7}"#), r#"{"code": 7}"#);
        assert_eq!(error(&format!("\"{}\"", "é".repeat(2000))), "é".repeat(512));
        assert_eq!(error(&format!("\"x{}\"", "é".repeat(2000))).len(), 1023);
    }

    #[test]
    fn one_malformed_command_does_not_hold_up_the_others() {
        let body = br#"{"commands":[
            {"command_id":"1","command_type":"ping","timestamp":"2026-11-24T00:00:00Z","token":"ey.hunter2"},
            {"command_id":"","command_type":"ping"}, {"command_type":"ping"}, 7,
            {"command_id":"2","command_type":"set","parameters":{"a":1}}]}"#;
        let Commands { commands, malformed } = parse_commands(body).unwrap();
        assert_eq!(malformed, 3);
        assert_eq!(commands.iter().map(|c| c.command_id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(commands[1].parameters["a"], 1);
        assert_eq!(commands[0].token.as_ref().unwrap().expose(), "ey.hunter2");
        assert!(!format!("{commands:?}").contains("hunter2"));
        assert!(parse_commands(b"{}").is_err());
    }

    #[test]
    fn a_command_of_any_size_does_not_hold_up_the_others() {
        let large = |bytes: usize| {
            let filler = "x".repeat(bytes);
            format!(r#"{{"parameters":{{"a":"{filler}"}},"command_id":"{bytes}","command_type":"ping"}}"#)
        };
        let (small, limit, huge) = (large(10), large(COMMAND_MAX_BYTES - 100), large(8 << 20));
        let body = format!(r#"{{"commands":[{huge},{small},{limit},{{"command_id":"é"}},{huge}]}}"#);
        let Commands { commands, malformed } = parse_commands(body.as_bytes()).unwrap();
        let found: Vec<_> = commands.iter().map(|c| (c.command_id.as_str(), c.is_oversized)).collect();
        assert_eq!(found, [("8388608", true), ("10", false), ("130972", false), ("8388608", true)]);
        assert_eq!(malformed, 1);
        assert!(commands[0].parameters.is_null() && commands[1].parameters.is_object());
    }

    #[test]
    fn a_command_with_an_invalid_character_does_not_hold_up_the_others() {
        let mut body = br#"{"commands":[{"command_id":"1","command_type":"\xe4"},{"command_id":"2","command_type":"p"}]}"#.to_vec();
        let escape = body.iter().position(|byte| *byte == b'\\').unwrap();
        body.splice(escape..escape + 4, [0xe4]);
        assert_eq!(parse_commands(&body).unwrap().commands.len(), 2);
    }

    #[test]
    fn keys_come_under_data_or_bare_and_unknown_ones_are_passed_over() {
        let keys = r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"1"},{"kty":"new"}, 7,
            {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"2"}]}"#;
        let bare = parse_key_set(keys.as_bytes()).unwrap();
        assert_eq!(bare.keys.len(), 2);
        assert!(bare.find("1").is_some() && bare.find("2").is_some());
        let wrapped = format!(r#"{{"success":true,"data":{keys}}}"#);
        assert_eq!(parse_key_set(wrapped.as_bytes()).unwrap(), bare);
        for body in ["", "{}", "[]", r#"{"data":{}}"#, r#"{"keys":7}"#] {
            assert!(parse_key_set(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn errors_do_not_repeat_the_answer() {
        let error = parse_quota_answer(br#"{"success":"hunter2"}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}:,\"a-z0-9 ]{0,80}") {
            for bytes in [body.as_slice(), json.as_bytes()] {
                let _ = parse_quota_answer(bytes);
                let _ = parse_batch_answer(bytes, BATCH, 3);
                let _ = parse_commands(bytes);
                let _ = parse_key_set(bytes);
            }
        }
    }
}
