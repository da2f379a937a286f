//! The answer to a batch.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{BadAnswer, data};

/// Bytes of a record's error kept in a dead letter.
const ERROR_MAX_BYTES: usize = 1 << 10;

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
pub(in crate::control_plane) fn knows_no_session(body: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
