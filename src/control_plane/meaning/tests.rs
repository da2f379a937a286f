//! The contract's table of answers.

use super::*;

const BATCH: Uuid = Uuid::from_u128(9);

fn single() -> Asked<'static> {
    Asked { correlation_id: "c", transaction_id: Some("t-1"), api_session_id: Some("s-1"), batch: None }
}

fn batch() -> Asked<'static> {
    Asked { correlation_id: "c", batch: Some(BATCH), ..Asked::default() }
}

fn call() -> Asked<'static> {
    Asked { correlation_id: "c", ..Asked::default() }
}

fn said(status: u16, body: &[u8]) -> Said<'_> {
    Said { status, has_retry_after: false, has_foreign_id: false, body, truncated: false }
}

/// The type of a body, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Absent,
    Object,
    Failure,
    Other,
}

const BODIES: &[(&[u8], Is)] = &[
    (b"", Is::Absent),
    (b"{}", Is::Object),
    (b" \r\n\t{\"success\":true} \n", Is::Object),
    (br#"{"success":true,"data":{"transaction_id":"t-1","api_session_id":"s-1"}}"#, Is::Object),
    (br#"{"success":null,"data":[{"transaction_id":"t-2"}]}"#, Is::Object),
    (br#"{"success":"false","data":"x"}"#, Is::Object),
    (br#"{"success":0,"data":null}"#, Is::Object),
    (br#"{"success":false}"#, Is::Failure),
    (br#"{"data":{},"success" : false , "error":{"code":7}}"#, Is::Failure),
    (b"<html><body>Sign in</body></html>", Is::Other),
    (b"OK", Is::Other),
    (b" ", Is::Other),
    (b"\n", Is::Other),
    (b"[]", Is::Other),
    (b"[true,{}]", Is::Other),
    (b"null", Is::Other),
    (b"true", Is::Other),
    (b"\"{}\"", Is::Other),
    (br#"{"success":true"#, Is::Other),
    (br#"{"success":true,"data":{"transaction_id":"t-1"}"#, Is::Other),
    (b"{}{}", Is::Other),
    (b"{} <!-- proxy -->", Is::Other),
    (b"{\"a\":\"\xff\"}", Is::Other),
    (b"\xff\xfe{\0}\0", Is::Other),
    (br#"{"success":true,"success":false}"#, Is::Other),
    (br#"{"data":{"transaction_id":"t-1","transaction_id":"t-1"}}"#, Is::Other),
];

/// The contract's table, written a second time.
fn expected(status: u16, is: Is, has_retry_after: bool) -> Meaning {
    let is_object = matches!(is, Is::Object | Is::Failure);
    match status {
        204 => Meaning::Delivered,
        200..=299 if is == Is::Failure => Meaning::Failing,
        200..=202 if is == Is::Object => Meaning::Delivered,
        200..=299 => Meaning::Foreign,
        409 if has_retry_after => Meaning::InProgress,
        409 if is_object || is == Is::Absent => Meaning::Duplicate,
        413 => Meaning::Refused,
        400 | 414 | 415 | 422 if is_object || is == Is::Absent => Meaning::Refused,
        400 | 409 | 414 | 415 | 422 | 500..=502 | 504..=599 => Meaning::Failing,
        404 | 410 => Meaning::NotFound,
        401 | 403 => Meaning::Credentials,
        408 | 425 | 429 | 503 => Meaning::Overloaded,
        _ => Meaning::Misconfigured,
    }
}

#[test]
fn every_status_with_every_body_means_what_the_contract_says() {
    for status in 100..=599 {
        for (body, is) in BODIES {
            for has_retry_after in [false, true] {
                let said = Said { has_retry_after, ..said(status, body) };
                let text = String::from_utf8_lossy(body);
                let found = meaning(&single(), &said);
                assert_eq!(found, expected(status, *is, has_retry_after), "{status} {text}");
                let cut = Said { truncated: true, ..said };
                let is = if *is == Is::Absent { Is::Absent } else { Is::Other };
                let found = meaning(&single(), &cut);
                assert_eq!(found, expected(status, is, has_retry_after), "{status} {text} and more");
            }
        }
    }
    for status in [0, 99, 600, 999] {
        assert_eq!(meaning(&single(), &said(status, b"{}")), Meaning::Misconfigured, "{status}");
    }
}

#[test]
fn an_answer_naming_another_request_is_mismatched_whatever_its_status() {
    let other = Uuid::from_u128(8);
    let of_batch = |id: Uuid| format!(r#"{{"success":true,"data":{{"batch":"{id}","count":1}}}}"#);
    let foreign = |asked: Asked<'_>, body: &str| {
        for status in 100..=599 {
            let found = meaning(&asked, &said(status, body.as_bytes()));
            assert_eq!(found, Meaning::Mismatched, "{status} {body}");
        }
    };
    for body in [
        r#"{"success":true,"data":{"transaction_id":"t-2"}}"#,
        r#"{"success":true,"data":{"transaction_id":"T-1"}}"#,
        r#"{"success":true,"data":{"transaction_id":7}}"#,
        r#"{"success":true,"data":{"transaction_id":["t-1"]}}"#,
        r#"{"success":true,"data":{"transaction_id":"t-1","api_session_id":"s-2"}}"#,
        r#"{"success":false,"data":{"api_session_id":"s-2"}}"#,
        r#"{"error":"refused","transaction_id":"t-2"}"#,
        r#"{"transaction_id":"t-1","data":{"transaction_id":"t-2"}}"#,
        r#"{"data":{"\u0074ransaction_id":"t-2"}}"#,
        &of_batch(other),
    ] {
        foreign(single(), body);
    }
    for body in [
        of_batch(other).as_str(),
        r#"{"success":true,"data":{"batch":"none","count":1}}"#,
        r#"{"success":true,"data":{"batch":9}}"#,
        r#"{"success":true,"data":{"transaction_id":"t-1"}}"#,
    ] {
        foreign(batch(), body);
    }
    foreign(call(), r#"{"success":true,"data":{"transaction_id":"t-1"}}"#);
    foreign(call(), &of_batch(other));
    for (body, _) in BODIES {
        for status in 100..=599 {
            let anothers = Said { has_foreign_id: true, ..said(status, body) };
            assert_eq!(meaning(&single(), &anothers), Meaning::Mismatched);
        }
    }
}

#[test]
fn an_answer_naming_the_request_differently_or_not_at_all_is_ours() {
    let own = |asked: Asked<'_>, body: &str| {
        assert_eq!(meaning(&asked, &said(200, body.as_bytes())), Meaning::Delivered, "{body}");
    };
    own(single(), r#"{"data":{"transaction_id":"\u0074-1"}}"#);
    own(single(), r#"{"data":{"transaction_id":null,"api_session_id":""}}"#);
    own(single(), r#"{"data":{"batch":"2026-11"}}"#);
    own(Asked { transaction_id: Some("7"), ..single() }, r#"{"data":{"transaction_id":7}}"#);
    own(batch(), &format!(r#"{{"data":{{"batch":"{}"}}}}"#, BATCH.simple().to_string().to_uppercase()));
    own(batch(), r#"{"data":{"count":3}}"#);
    own(call(), r#"{"commands":[{"command_id":"1","transaction_id":"t"}]}"#);
}

#[test]
fn a_correlation_id_is_compared_as_text_or_as_a_uuid() {
    let upper = "0AF76519-16CD-43DD-8448-EB211C80319C";
    for (asked, named) in [("c", "c"), (" c ", "c"), ("c", ""), (&*upper.to_lowercase(), upper)] {
        assert!(!is_another_correlation_id(asked, named.as_bytes()), "{asked} {named}");
    }
    for (asked, named) in [("c", "C"), ("c", "c,d"), ("c", "\u{fc}"), (upper, "0AF76519")] {
        assert!(is_another_correlation_id(asked, named.as_bytes()), "{asked} {named}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_have_a_meaning(status: u16, body: Vec<u8>, json in "[\\[\\]{}:,\"a-z0-9 ]{0,80}") {
        meaning(&single(), &said(status, &body));
        meaning(&batch(), &said(status, json.as_bytes()));
    }
}
