//! Parses records from bodies without copying, and explains why others are invalid.

use std::borrow::Cow;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::weather::Weather;

/// Why a record or a whole request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status, reason: reason.into() }
    }

    fn unprocessable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
    }
}

/// The fields that matter here; others are skipped. Missing fields are empty.
#[derive(Deserialize)]
pub(super) struct Record<'a> {
    #[serde(borrow, default)]
    pub(super) transaction_id: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) api_session_id: Cow<'a, str>,
    #[serde(borrow)]
    sequence: Option<&'a RawValue>,
}

impl<'a> Record<'a> {
    const TEXTS: [&'static str; 2] = ["transaction_id", "api_session_id"];

    pub(super) fn parse(text: &'a str) -> Result<Self, Refusal> {
        let record: Self = serde_json::from_str(text).map_err(|error| Self::explain(text, &error))?;
        if record.transaction_id.is_empty() {
            return Err(Refusal::unprocessable("transaction_id: missing or empty"));
        }
        Ok(record)
    }

    /// The producer's sequence number within the session, if it is a whole number.
    pub(super) fn sequence(&self) -> Option<i64> {
        self.sequence.and_then(|number| number.get().parse().ok())
    }

    /// Names the field with the wrong type, which serde does not.
    fn explain(text: &str, error: &serde_json::Error) -> Refusal {
        match serde_json::from_str(text) {
            Err(_) => Refusal::new(StatusCode::BAD_REQUEST, format!("not JSON: {error}")),
            Ok(Value::Object(fields)) => {
                let wrong = Self::TEXTS
                    .iter()
                    .find(|&&name| fields.get(name).is_some_and(|field| !field.is_string()));
                Refusal::unprocessable(match wrong {
                    Some(name) => format!("{name}: not a text"),
                    None => error.to_string(),
                })
            }
            Ok(_) => Refusal::unprocessable("not a JSON object"),
        }
    }
}

/// A session's records in a batch, in order.
#[derive(Deserialize)]
pub(super) struct Group<'a> {
    #[serde(borrow)]
    pub(super) api_session_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) records: Vec<Enclosed<'a>>,
}

/// A record of a batch: its kind, and the exact bytes of its single request.
#[derive(Deserialize)]
pub(super) struct Enclosed<'a> {
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) body: &'a RawValue,
}

/// Parses the sessions of a batch.
pub(super) fn parse_batch(text: &str) -> Result<Vec<Group<'_>>, Refusal> {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        sessions: Vec<Group<'a>>,
    }
    match serde_json::from_str::<Batch<'_>>(text) {
        Ok(batch) => Ok(batch.sessions),
        Err(error) if error.is_data() => Err(Refusal::unprocessable(format!("sessions: {error}"))),
        Err(error) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("not JSON: {error}"))),
    }
}

/// The fate of a single record in this weather.
pub(super) fn own_fate(weather: &Weather, transaction: &str, session: &str) -> Option<Refusal> {
    let begins = |prefixes: &[String], id: &str| prefixes.iter().any(|prefix| id.starts_with(prefix));
    if begins(&weather.unknown_sessions, session) {
        Some(Refusal::new(StatusCode::NOT_FOUND, "the session is not known"))
    } else if begins(&weather.refuse_transactions, transaction) {
        Some(Refusal::new(weather.refusal(transaction), "the record is refused"))
    } else if begins(&weather.poison_transactions, transaction) {
        Some(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the record broke something"))
    } else {
        None
    }
}

/// The refusal of a backend that refuses everything.
pub(super) fn chance_refusal(weather: &Weather, transaction: &str) -> Refusal {
    Refusal::new(weather.refusal(transaction), "this backend refuses everything")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_a_transaction_id_is_refused_by_that_name() {
        for text in
            [r"{}", r#"{"transaction_id":""}"#, r#"{"transaction_id":5}"#, r#"{"transaction_id":null}"#]
        {
            let refusal = Record::parse(text).err().unwrap();
            assert_eq!(refusal.status, 422, "{text}");
            assert!(refusal.reason.starts_with("transaction_id: "), "{text}: {refusal:?}");
        }
        let status = |text| Record::parse(text).err().map(|refusal| refusal.status.as_u16());
        assert_eq!(
            (status("[1]"), status("{"), status(r#"{"transaction_id":"t"}"#)),
            (Some(422), Some(400), None)
        );
    }

    #[test]
    fn escapes_are_read_and_a_sequence_counts_only_as_a_whole_number() {
        let record = Record::parse(r#"{"transaction_id":"a\u0062","sequence":-7,"more":[{}]}"#).unwrap();
        assert_eq!((&*record.transaction_id, record.sequence()), ("ab", Some(-7)));
        for sequence in ["null", "1.5", r#""1""#, "{}"] {
            let text = format!(r#"{{"transaction_id":"t","sequence":{sequence}}}"#);
            assert_eq!(Record::parse(&text).unwrap().sequence(), None, "{sequence}");
        }
    }

    #[test]
    fn a_batch_keeps_its_records_bytes() {
        let text = r#"{"more":1,"sessions":[{"api_session_id":"s","records":[
            {"kind":"usage_record","body":{"a" : 1.50}},{"kind":"x","body":7}]},{"api_session_id":"t","records":[]}]}"#;
        let groups = parse_batch(text).unwrap();
        assert_eq!(groups.iter().map(|group| &*group.api_session_id).collect::<Vec<_>>(), ["s", "t"]);
        let bodies: Vec<_> =
            groups[0].records.iter().map(|record| (&*record.kind, record.body.get())).collect();
        assert_eq!(bodies, [("usage_record", r#"{"a" : 1.50}"#), ("x", "7")]);
        for (text, status) in [
            (r#"{"records":[]}"#, 422),
            (r#"{"sessions":[{"records":[]}]}"#, 422),
            (r#"{"sessions":[{"api_session_id":"s","records":[{"kind":"x"}]}]}"#, 422),
            (r#"{"sessions":["#, 400),
        ] {
            assert_eq!(parse_batch(text).err().unwrap().status, status, "{text}");
        }
    }
}
