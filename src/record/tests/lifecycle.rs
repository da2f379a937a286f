//! Lifecycle requests contain exactly the contract's fields.

use super::*;

/// The fields of the resulting body, in order.
#[track_caller]
fn request(message: &str) -> Vec<(String, String)> {
    members(body(&accepted(Queue::Lifecycle, message)))
}

fn owned(members: &[(&str, &str)]) -> Vec<(String, String)> {
    members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_started_request_holds_the_contracts_fields_and_no_others() {
    let fields = [
        ("transaction_id", "\"t\""),
        ("customer_id", "\"c\""),
        ("event_type", "\"session_started\""),
        ("started_at", "\"2026-01-31T10:00:00Z\""),
        ("timestamp", NOW),
    ];
    assert_eq!(request(STARTED), owned(&fields));
    let more = [
        ("disconnect_reason", "\"STALE\""),
        ("final_usage_summary", "{\"total_request_count\":1}"),
        ("client_info", "{\"spoofed\":1}"),
        ("server_instance_id", "\"x\""),
        ("more", "[1]"),
    ];
    let message = more.iter().fold(STARTED.to_owned(), |message, (name, value)| with(&message, name, value));
    assert_eq!(request(&message), owned(&fields));
    let record = accepted(Queue::Lifecycle, &message);
    assert_eq!(
        (record.kind(), record.session(), record.original().as_ref()),
        (Kind::Started, "s", message.as_bytes())
    );
}

#[test]
fn client_info_is_the_metadatas_an_empty_object_if_it_lacks_it_and_absent_without_metadata() {
    for (metadata, client_info) in [
        (r#"{"client_info":{"a" : 1.0},"b":2}"#, Some(r#"{"a" : 1.0}"#)),
        (r#"{"client_info":"text"}"#, Some(r#""text""#)),
        (r#"{"client_info":null}"#, Some("null")),
        (r#"{"client_info":1,"client\u005finfo":2}"#, Some("2")),
        (r#"{"b":{"client_info":1}}"#, Some("{}")),
        ("{}", Some("{}")),
        ("null", None),
    ] {
        let request = request(&with(STARTED, "metadata", metadata));
        let found = request.iter().find(|(name, _)| name == "client_info").map(|(_, value)| value.as_str());
        assert_eq!(found, client_info, "{metadata}");
        assert!(!request.iter().any(|(name, _)| name == "metadata"));
    }
}

#[test]
fn a_completed_request_holds_the_contracts_fields_and_no_others() {
    let fields = [
        ("transaction_id", "\"t\""),
        ("customer_id", "\"c\""),
        ("event_type", "\"session_completed\""),
        ("completed_at", "\"2026-01-31T10:00:00Z\""),
        ("timestamp", NOW),
        ("disconnect_reason", "null"),
    ];
    assert_eq!(request(COMPLETED), owned(&fields));
    for name in ["disconnect_reason", "final_usage_summary", "metadata"] {
        assert_eq!(request(&with(COMPLETED, name, "null")), owned(&fields), "null is absence");
    }
    let message = with(&with(COMPLETED, "more", "1"), "disconnect_reason", "\"CLIENT_CLOSE\"");
    let message = with(&message, "metadata", r#"{"client_info":{},"k": [1.0]}"#);
    let message = with(&message, "final_usage_summary", r#"{"total_request_count":3}"#);
    let mut full = fields;
    full[5].1 = "\"CLIENT_CLOSE\"";
    let expected = [
        &full[..],
        &[
            ("final_usage_summary", r#"{"total_request_count":3}"#),
            ("metadata", r#"{"client_info":{},"k": [1.0]}"#),
        ],
    ]
    .concat();
    assert_eq!(request(&message), owned(&expected));
}

#[test]
fn an_events_time_is_its_own_or_that_of_acceptance() {
    for (message, name) in [(STARTED, "started_at"), (COMPLETED, "completed_at")] {
        for (given, expected) in [
            ("1769853600", "\"2026-01-31T10:00:00.000000Z\""),
            ("\"2026-01-31T10:00:00\"", "\"2026-01-31T10:00:00Z\""),
        ] {
            let record = accepted(Queue::Lifecycle, &with(message, "timestamp", given));
            assert_eq!((sent(&record, name).as_str(), sent(&record, "timestamp").as_str()), (expected, NOW));
        }
        let record = accepted(Queue::Lifecycle, &without(message, "timestamp"));
        assert_eq!(sent(&record, name), NOW);
    }
}

#[test]
fn a_summary_is_normalised_and_its_problems_are_named_with_their_place() {
    let summary = |summary: &str| {
        sent(
            &accepted(Queue::Lifecycle, &with(COMPLETED, "final_usage_summary", summary)),
            "final_usage_summary",
        )
    };
    assert_eq!(
        summary(
            r#"{"total_audio_duration_seconds":"2.50","total_connection_duration_seconds":1.0,"more":1,
                "total_request_count":0.0,"total_data_bytes_processed":"12","last_request_timestamp":0}"#
        ),
        r#"{"total_connection_duration_seconds":1.0,"total_audio_duration_seconds":2.50,"total_data_bytes_processed":12,"total_request_count":0,"last_request_timestamp":"1970-01-01T00:00:00.000000Z"}"#
    );
    assert_eq!(summary("{}"), "{}");
    assert_eq!(summary(r#"{"total_request_count":null}"#), "{}");
    for (bad, reason) in [
        (
            r#"{"total_request_count":1.5}"#,
            "final_usage_summary.total_request_count: must be an integer of 0 or more, found a fraction",
        ),
        (
            r#"{"total_audio_duration_seconds":-1}"#,
            "final_usage_summary.total_audio_duration_seconds: must be a number of 0 or more, found a negative number",
        ),
        ("[]", "final_usage_summary: must be an object, found an array"),
        ("7", "final_usage_summary: must be an object, found a number"),
    ] {
        assert_eq!(rejected(Queue::Lifecycle, with(COMPLETED, "final_usage_summary", bad)), reason);
    }
    assert_eq!(
        rejected(Queue::Lifecycle, with(STARTED, "metadata", "\"x\"")),
        "metadata: must be an object, found a string"
    );
}

#[test]
fn a_rejected_event_is_of_the_kind_that_it_says() {
    let kind = |message: &str| accept(Queue::Lifecycle, message).unwrap_err().kind;
    assert_eq!(kind(&without(STARTED, "customer_id")), Kind::Started);
    assert_eq!(kind(&without(COMPLETED, "customer_id")), Kind::Completed);
    assert_eq!(kind(&with(STARTED, "event_type", "\"session_paused\"")), Kind::Lifecycle);
    assert_eq!(kind(&without(STARTED, "event_type")), Kind::Lifecycle);
    assert_eq!(kind("{"), Kind::Lifecycle);
    assert_eq!(accept(Queue::Usage, "{").unwrap_err().kind, Kind::Usage);
    assert_eq!(accept(Queue::Quota, "{").unwrap_err().kind, Kind::Quota);
}
