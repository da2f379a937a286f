//! Field by field: accepted values, how they are sent, and the text of rejections.

use super::*;

const USAGE_REQUIRED: [&str; 8] = [
    "transaction_id",
    "api_session_id",
    "customer_id",
    "connection_duration_seconds",
    "data_bytes_processed",
    "audio_duration_seconds",
    "request_timestamp",
    "response_timestamp",
];

#[test]
fn a_missing_field_is_named_or_has_its_default() {
    for name in USAGE_REQUIRED {
        assert_eq!(rejected(Queue::Usage, without(USAGE, name)), format!("{name}: missing"));
    }
    for (queue, message) in [(Queue::Lifecycle, COMPLETED), (Queue::Quota, QUOTA)] {
        for name in ["transaction_id", "api_session_id", "customer_id"] {
            assert_eq!(rejected(queue, without(message, name)), format!("{name}: missing"));
        }
    }
    assert_eq!(rejected(Queue::Lifecycle, without(STARTED, "event_type")), "event_type: missing");
    for (queue, message, name, default) in [
        (Queue::Usage, USAGE, "product_code", r#""speech_transcription""#),
        (Queue::Usage, USAGE, "request_count", "1"),
        (Queue::Quota, QUOTA, "product_code", r#""speech_transcription""#),
        (Queue::Quota, QUOTA, "timestamp", NOW),
    ] {
        assert_eq!(sent(&accepted(queue, &without(message, name)), name), default, "{name}");
    }
}

#[test]
fn all_problems_are_named_in_the_contracts_order() {
    let all: Vec<_> = USAGE_REQUIRED.iter().map(|name| format!("{name}: missing")).collect();
    assert_eq!(rejected(Queue::Usage, "{}"), all.join("; "));
    let message = with(&with(USAGE, "request_count", "0"), "customer_id", "7");
    let message = with(&message, "response_timestamp", "\"1970-01-01T00:00:00Z\"");
    assert_eq!(
        rejected(Queue::Usage, message),
        "customer_id: must be a string that is not empty, found a number; \
         request_count: must be an integer of 1 or more, found 0; \
         response_timestamp: must not be before request_timestamp"
    );
    let summary = r#"{"total_request_count":-1,"last_request_timestamp":"soon"}"#;
    let message = with(&with(COMPLETED, "final_usage_summary", summary), "metadata", "[]");
    assert_eq!(
        rejected(Queue::Lifecycle, message),
        "metadata: must be an object, found an array; \
         final_usage_summary.total_request_count: must be an integer of 0 or more, found a negative number; \
         final_usage_summary.last_request_timestamp: must be a time in RFC 3339 or as Unix seconds, found a string that is not a time"
    );
}

#[test]
fn an_id_is_any_string_that_is_not_empty() {
    for name in ["transaction_id", "api_session_id", "customer_id"] {
        for id in
            [r#""x""#, r#""a b/ü\u00e9\n""#, r#""\u0000""#, r#""\ud83d\ude00""#, r#"" x ""#, r#"" \t\u00a0""#]
        {
            for (queue, message) in
                [(Queue::Usage, USAGE), (Queue::Lifecycle, STARTED), (Queue::Quota, QUOTA)]
            {
                accepted(queue, &with(message, name, id));
            }
        }
        for (value, found) in [
            (r#""""#, "an empty string"),
            (r#""\ud800""#, "a string with half a surrogate pair (\\ud800 to \\udfff)"),
            (r#""\ude00\ud83d""#, "a string with half a surrogate pair (\\ud800 to \\udfff)"),
            ("null", "null"),
            ("12", "a number"),
            ("true", "a boolean"),
            ("{}", "an object"),
            (r#"["x"]"#, "an array"),
        ] {
            assert_eq!(
                rejected(Queue::Usage, with(USAGE, name, value)),
                format!("{name}: must be a string that is not empty, found {found}")
            );
        }
    }
}

#[test]
fn a_number_is_sent_as_a_json_number_with_its_digits() {
    let big = format!("1{}", "0".repeat(300));
    for name in ["connection_duration_seconds", "audio_duration_seconds"] {
        for (given, expected) in [
            ("-0", "-0"),
            ("1.0", "1.0"),
            ("0.1000000000000000055", "0.1000000000000000055"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551616", "18446744073709551616"),
            ("1E+2", "1E+2"),
            ("1e308", "1e308"),
            ("1e-400", "1e-400"),
            (r#""12.50""#, "12.50"),
            (r#""1\u0032""#, "12"),
            (&big, &big),
        ] {
            assert_eq!(sent(&accepted(Queue::Usage, &with(USAGE, name, given)), name), expected, "{given}");
        }
        for (given, found) in [
            ("-0.001", "a negative number"),
            (r#""-1""#, "a negative number"),
            ("1e400", "a number too large for a double"),
            (r#""1e400""#, "a number too large for a double"),
            (r#""NaN""#, "a string that is not a number"),
            (r#""Infinity""#, "a string that is not a number"),
            (r#""12 ""#, "a string that is not a number"),
            (r#""1_000""#, "a string that is not a number"),
            ("null", "null"),
            ("false", "a boolean"),
            ("[1]", "an array"),
        ] {
            let expected = format!("{name}: must be a number of 0 or more, found {found}");
            assert_eq!(rejected(Queue::Usage, with(USAGE, name, given)), expected);
        }
    }
}

#[test]
fn an_integer_is_sent_without_a_fraction() {
    for (name, least) in [("data_bytes_processed", 0), ("request_count", 1)] {
        for (given, expected) in [
            ("1", "1"),
            ("1.0", "1"),
            ("12e2", "1200"),
            ("120e-1", "12"),
            ("9223372036854775808", "9223372036854775808"),
            ("18446744073709551616.000", "18446744073709551616"),
            (r#""12""#, "12"),
            (r#""12.0""#, "12"),
        ] {
            assert_eq!(sent(&accepted(Queue::Usage, &with(USAGE, name, given)), name), expected, "{given}");
        }
        for (given, found) in [
            ("1.5", "a fraction"),
            ("1e-1", "a fraction"),
            ("-1", "a negative number"),
            ("1e400", "a number of more than 400 digits"),
            (r#""x""#, "a string that is not a number"),
            ("null", "null"),
            ("true", "a boolean"),
        ] {
            let expected = format!("{name}: must be an integer of {least} or more, found {found}");
            assert_eq!(rejected(Queue::Usage, with(USAGE, name, given)), expected);
        }
    }
    for zero in ["0", "-0", "0.0", "0e9", r#""0""#] {
        assert_eq!(
            sent(&accepted(Queue::Usage, &with(USAGE, "data_bytes_processed", zero)), "data_bytes_processed"),
            "0"
        );
        let expected = "request_count: must be an integer of 1 or more, found 0";
        assert_eq!(rejected(Queue::Usage, with(USAGE, "request_count", zero)), expected);
    }
}

#[test]
fn a_choice_is_one_of_the_contracts_words() {
    for (queue, message) in [(Queue::Usage, USAGE), (Queue::Quota, QUOTA)] {
        for code in ["speech_transcription", "speech_synthesis", "real_time_streaming"] {
            let record = accepted(queue, &with(message, "product_code", &format!("{code:?}")));
            assert_eq!(sent(&record, "product_code"), format!("{code:?}"));
        }
        for (value, found) in
            [(r#""Speech_Synthesis""#, "another string"), (r#""""#, "another string"), ("null", "null")]
        {
            assert_eq!(
                rejected(queue, with(message, "product_code", value)),
                format!(
                    "product_code: must be one of speech_transcription, speech_synthesis, real_time_streaming, found {found}"
                )
            );
        }
    }
    let reasons = "CLIENT_CLOSE CLIENT_ERROR STREAM_END INVALID_MESSAGE SESSION_TIMEOUT OUT_OF_CREDIT SERVER_ERROR SERVER_SHUTDOWN UNKNOWN STALE";
    for reason in reasons.split(' ') {
        let record =
            accepted(Queue::Lifecycle, &with(COMPLETED, "disconnect_reason", &format!("{reason:?}")));
        assert_eq!(sent(&record, "disconnect_reason"), format!("{reason:?}"));
    }
    let unknown = rejected(Queue::Lifecycle, with(COMPLETED, "disconnect_reason", r#""BORED""#));
    assert!(
        unknown.starts_with("disconnect_reason: must be one of CLIENT_CLOSE, ") && !unknown.contains("BORED")
    );
}

#[test]
fn a_time_is_sent_as_rfc3339_with_a_zone() {
    for (queue, message, name) in
        [(Queue::Usage, USAGE, "request_timestamp"), (Queue::Quota, QUOTA, "timestamp")]
    {
        for (given, expected) in [
            (r#""2026-01-31T09:00:00.5+05:30""#, r#""2026-01-31T09:00:00.5+05:30""#),
            (r#""2026-01-31T09:00:00""#, r#""2026-01-31T09:00:00Z""#),
            ("1769853600", r#""2026-01-31T10:00:00.000000Z""#),
            ("1769853600.25", r#""2026-01-31T10:00:00.250000Z""#),
            ("1769853600250", r#""2026-01-31T10:00:00.250000Z""#),
            (r#""1769853600250""#, r#""2026-01-31T10:00:00.250000Z""#),
            ("99999999999", r#""5138-11-16T09:46:39.000000Z""#),
            ("100000000000", r#""1973-03-03T09:46:40.000000Z""#),
        ] {
            let message = with(message, "response_timestamp", r#""9999-01-01T00:00:00Z""#);
            assert_eq!(sent(&accepted(queue, &with(&message, name, given)), name), expected, "{given}");
        }
        let complaint = rejected(queue, with(message, name, r#""31.01.2026""#));
        assert_eq!(
            complaint,
            format!(
                "{name}: must be a time in RFC 3339 or as Unix seconds, found a string that is not a time"
            )
        );
        assert!(rejected(queue, with(message, name, "null")).ends_with("found null"));
    }
}

#[test]
fn a_response_is_not_before_its_request_in_whatever_form_the_two_are() {
    let pair = |request: &str, response: &str| {
        with(&with(USAGE, "request_timestamp", request), "response_timestamp", response)
    };
    let ten = [
        "\"2026-01-31T10:00:00Z\"",
        "\"2026-01-31T10:00:00\"",
        "\"2026-01-31T11:00:00+01:00\"",
        "1769853600",
        "1769853600000",
        "\"1769853600\"",
    ];
    for request in ten {
        for response in ten {
            accepted(Queue::Usage, &pair(request, response));
        }
        for earlier in [
            "\"2026-01-31T09:59:59.999999999Z\"",
            "\"2026-01-31T10:59:59+01:00\"",
            "1769853599.999999999",
            "1769853599999",
        ] {
            assert_eq!(
                rejected(Queue::Usage, pair(request, earlier)),
                "response_timestamp: must not be before request_timestamp"
            );
        }
    }
}

#[test]
fn of_a_field_given_twice_the_last_one_counts_and_is_sent_once() {
    let twice = USAGE.replacen('{', r#"{"request_count":"junk","r\u0065quest_count":7,"#, 1);
    let record = accepted(Queue::Usage, &twice);
    assert_eq!(sent(&record, "request_count"), "2");
    let twice = USAGE.replacen('}', r#","request_count":0}"#, 1);
    assert_eq!(rejected(Queue::Usage, twice), "request_count: must be an integer of 1 or more, found 0");
    let id = USAGE.replacen('}', r#","transaction_id":"last"}"#, 1);
    let record = accepted(Queue::Usage, &id);
    assert_eq!((record.transaction(), sent(&record, "transaction_id").as_str()), ("last", r#""last""#));
}

#[test]
fn a_message_of_the_limit_is_accepted_and_one_byte_more_is_not() {
    let padded = |len: usize| {
        let mut message = with(USAGE, "padding", "\"\"");
        let padding = "x".repeat(len - message.len());
        message = with(USAGE, "padding", &format!("{padding:?}"));
        assert_eq!(message.len(), len);
        message
    };
    accepted(Queue::Usage, &padded(RECORD_MAX_BYTES));
    assert_eq!(
        rejected(Queue::Usage, padded(RECORD_MAX_BYTES + 1)),
        "too large: 262145 bytes, the limit is 262144"
    );
    assert!(rejected(Queue::Quota, vec![0xff; RECORD_MAX_BYTES + 1]).starts_with("too large"));
}
