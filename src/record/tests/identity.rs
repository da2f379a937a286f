//! The idempotency key, and the identity of a record after it is restored.

use super::*;

#[test]
fn keys_are_uuids_of_kind_and_transaction_in_the_documented_namespace() {
    assert_eq!(KEY_NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"dataplane-agent"));
    for (queue, message, key) in [
        (Queue::Usage, USAGE, "78a4eae5-daf6-5110-a4ab-5f5c809ed06a"),
        (Queue::Lifecycle, STARTED, "3619cf03-9926-5a1a-b499-043e67a47110"),
        (Queue::Lifecycle, COMPLETED, "1dccb660-fa50-585c-b4d2-d3aacd871c62"),
        (Queue::Quota, QUOTA, "52a9cb0b-e566-55ee-83c0-19ac9b200601"),
    ] {
        let record = accepted(queue, &with(message, "transaction_id", "\"tx-1\""));
        assert_eq!(record.key().to_string(), key, "{queue:?}");
    }
    let record = accepted(Queue::Usage, &with(USAGE, "transaction_id", r#""\u00e4\/☃""#));
    assert_eq!(record.transaction(), "ä/☃");
    assert_eq!(
        record.key().to_string(),
        "86865f05-9ef2-550f-a669-a64287360911",
        "escapes make no difference"
    );
}

#[test]
fn nothing_but_kind_and_transaction_makes_a_key() {
    let key = accepted(Queue::Usage, USAGE).key();
    let changed = with(&with(&with(USAGE, "customer_id", "\"d\""), "api_session_id", "\"z\""), "more", "1");
    assert_eq!(accepted(Queue::Usage, &changed).key(), key);
    let other = Enrichment { server_id: "edge-2".into(), region: "us".into(), version: "9".into() };
    let later = Acceptor::new(&other, UnknownFields::Drop, 4096);
    let record = later.at(Timestamp(0)).accept(Queue::Usage, changed.as_bytes()).unwrap();
    assert_eq!(record.key(), key, "another agent, time and configuration");
    assert_ne!(accepted(Queue::Usage, &with(USAGE, "transaction_id", "\"T\"")).key(), key);
}

#[test]
fn a_record_comes_back_from_its_parts_as_it_was() {
    let escaped = with(USAGE, "transaction_id", r#""\u0074""#);
    let messages = [
        (Queue::Usage, USAGE.to_owned()),
        (Queue::Usage, escaped),
        (Queue::Usage, with(USAGE, "request_count", "\"3\"")),
        (Queue::Lifecycle, with(COMPLETED, "api_session_id", r#""a\\b""#)),
        (Queue::Quota, with(&with(QUOTA, "correlation_id", "\"corr\""), "timestamp", "0")),
    ];
    for (queue, message) in messages {
        let record = accepted(queue, &message);
        let (kind, accepted_at, data, layout) = record.clone().into_parts();
        assert_eq!(accepted_at, ACCEPTED);
        let again = Record::from_parts(kind, accepted_at, data, layout).unwrap();
        assert_eq!(again, record);
        assert_eq!(
            (again.body(), again.original(), again.key()),
            (record.body(), record.original(), record.key())
        );
        assert_eq!((again.session(), again.transaction()), (record.session(), record.transaction()));
    }
}

#[test]
fn a_layout_that_does_not_fit_its_buffer_is_an_error() {
    let message = with(&with(USAGE, "correlation_id", "\"corr\""), "request_count", "\"3\"");
    let (kind, at, data, layout) = accepted(Queue::Usage, &message).into_parts();
    let beyond = Span { start: data.len() as u32 - 1, len: 2 };
    let far = Span { start: u32::MAX, len: u32::MAX };
    for (part, damaged) in [
        ("body", Layout { body: data.len() as u32 + 1, ..layout }),
        ("session", Layout { session: beyond, ..layout }),
        ("transaction", Layout { transaction: far, ..layout }),
        ("original", Layout { original: Original::Prefix(layout.body + 1), ..layout }),
        ("original", Layout { original: Original::Kept(beyond), ..layout }),
        ("correlation id", Layout { correlation: Some(Span { start: 0, len: 0 }), ..layout }),
        ("traceparent", Layout { traceparent: Some(Span { start: 0, len: 9 }), ..layout }),
    ] {
        assert_eq!(Record::from_parts(kind, at, data.clone(), damaged), Err(BadLayout(part)));
    }
}
