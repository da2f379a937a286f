//! The answer to a quota refresh.

use serde::Deserialize;
use serde_json::Value;

use super::{BadAnswer, data};

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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn errors_do_not_repeat_the_answer() {
        let error = parse_quota_answer(br#"{"success":"hunter2"}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}
