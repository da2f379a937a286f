//! Answers in words, for logs, the status and dead letters.

use crate::control_plane::{Answer, BatchException, Meaning, Response};

/// Bytes of an answer kept in a dead letter.
const DETAIL_BYTES: usize = 1024;

/// Describes an answer that settles nothing. Omits its body, which may quote the record.
pub(super) fn heard(answer: &Answer) -> Option<String> {
    match &answer.result {
        Ok(Response { meaning: Meaning::Delivered, .. }) => None,
        Ok(Response { meaning: Meaning::Failing, status: status @ 200..300, .. }) => {
            Some(format!("status {status} with \"success\": false"))
        }
        Ok(response) => Some(format!("status {}{}", response.status, response.meaning.remark())),
        Err(failure) => Some(failure.to_string()),
    }
}

/// The part of an answer kept in a dead letter.
pub(super) fn detail(answer: &Answer) -> String {
    match &answer.result {
        Ok(response) => {
            let head = &response.body[..response.body.len().min(DETAIL_BYTES)];
            in_words(response.status, &String::from_utf8_lossy(head))
        }
        Err(failure) => failure.to_string(),
    }
}

/// The same for one result of a batch; only the status if there is no text.
pub(super) fn in_words(status: u16, words: &str) -> String {
    if words.is_empty() { format!("status {status}") } else { format!("status {status}: {words}") }
}

/// Describes the answer to one record of a batch.
pub(super) fn of_a_batch(exception: &BatchException) -> String {
    format!("status {} for a record of a batch", exception.status)
}
