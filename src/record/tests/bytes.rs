//! The bytes sent: the producer's own if possible, otherwise rewritten, and always the same.

use super::*;

fn dropping(queue: Queue, raw: &str) -> Record {
    acceptor(UnknownFields::Drop).at(ACCEPTED).accept(queue, raw.as_bytes()).unwrap()
}

#[test]
fn a_normalised_record_keeps_the_producers_bytes() {
    let odd = USAGE
        .replace("\"data_bytes_processed\":10", " \t\"data_bytes_processed\"\n: 10\r\n")
        .replace('}', r#","n\u00fcll":null,"deep":[{"a":[ 1.0e-0 ]}],"half":"\ud800","":0,"x":1,"x":2 }"#);
    for message in [USAGE, &odd] {
        let record = accepted(Queue::Usage, message);
        assert_eq!(body(&record), format!("{}{ENRICHMENT}", &message[..message.len() - 1]));
        assert!(matches!(record.layout().original, Original::Prefix(_)), "the bytes are kept once");
        assert_eq!(record.data().len(), record.body().len());
        assert_eq!(record.original(), message.as_bytes());
    }
    let record = accepted(Queue::Quota, QUOTA);
    assert_eq!((record.body(), record.original().as_ref()), (QUOTA.as_bytes(), QUOTA.as_bytes()));
}

#[test]
fn defaults_are_added_behind_the_producers_own_bytes() {
    let message = without(&without(USAGE, "request_count"), "product_code");
    let record = accepted(Queue::Usage, &message);
    assert_eq!(
        body(&record),
        format!(
            r#"{},"product_code":"speech_transcription","request_count":1{ENRICHMENT}"#,
            &message[..message.len() - 1]
        )
    );
    assert_eq!(record.original(), message.as_bytes());
    let message = without(QUOTA, "timestamp");
    let record = accepted(Queue::Quota, &message);
    assert_eq!(body(&record), format!(r#"{},"timestamp":{NOW}}}"#, &message[..message.len() - 1]));
    assert_eq!(record.original(), message.as_bytes());
}

#[test]
fn white_space_around_the_object_is_not_sent_and_is_kept() {
    let message = format!("\r\n {USAGE}\t\n");
    let record = accepted(Queue::Usage, &message);
    assert_eq!(body(&record), format!("{}{ENRICHMENT}", &USAGE[..USAGE.len() - 1]));
    assert_eq!(record.original(), message.as_bytes());
    assert_eq!((record.session(), record.transaction()), ("s", "t"));
}

#[test]
fn what_is_normalised_keeps_its_place_and_all_around_it_its_digits() {
    let message = r#"{ "x" : 1.0e0, "transaction_id":"t", "api_session_id":"s" ,"customer_id":"c",
        "connection_duration_seconds": "1.50", "data_bytes_processed":1.0,"audio_duration_seconds":2.50,
        "request_timestamp":0,"response_timestamp":"2026-01-31T10:00:00","y\u0020": [ 1 , 2 ]}"#;
    let record = accepted(Queue::Usage, message);
    assert_eq!(
        body(&record),
        format!(
            r#"{{"x":1.0e0,"transaction_id":"t","api_session_id":"s","customer_id":"c","connection_duration_seconds":1.50,"data_bytes_processed":1,"audio_duration_seconds":2.50,"request_timestamp":"1970-01-01T00:00:00.000000Z","response_timestamp":"2026-01-31T10:00:00Z","y\u0020":[ 1 , 2 ],"product_code":"speech_transcription","request_count":1{ENRICHMENT}"#
        )
    );
    assert_eq!(record.original(), message.as_bytes());
}

#[test]
fn a_producers_own_enrichment_is_left_out() {
    let message = with(&with(USAGE, "agent_version", "\"0\""), "processing_timestamp", "null")
        .replace("\"agent_version\"", r#""\u0061gent_version""#);
    let record = accepted(Queue::Usage, &message);
    assert_eq!(body(&record), format!("{}{ENRICHMENT}", &USAGE[..USAGE.len() - 1]));
    assert_eq!(record.original(), message.as_bytes());
    // Only usage records are enriched; elsewhere the name has no meaning.
    let message = with(QUOTA, "agent_version", "\"0\"");
    assert_eq!(body(&accepted(Queue::Quota, &message)), message);
}

#[test]
fn unknown_fields_can_be_dropped_and_nothing_else_is() {
    let message = with(&with(USAGE, "more", "{\"a\":1}"), "correlation_id", "\"corr-1\"");
    let record = dropping(Queue::Usage, &message);
    assert_eq!(body(&record), format!("{}{ENRICHMENT}", &USAGE[..USAGE.len() - 1]));
    assert_eq!((record.original().as_ref(), record.correlation()), (message.as_bytes(), Some("corr-1")));
    assert_eq!(body(&dropping(Queue::Quota, &with(QUOTA, "more", "1"))), QUOTA);
    let record = dropping(Queue::Usage, USAGE);
    assert!(matches!(record.layout().original, Original::Prefix(_)), "there is nothing to drop");
}

#[test]
fn an_escaped_name_is_the_field_that_it_spells() {
    let message = USAGE.replace("\"customer_id\"", r#""custom\u0065r_id""#);
    let record = accepted(Queue::Usage, &message);
    assert_eq!(body(&record), format!("{}{ENRICHMENT}", &message[..message.len() - 1]), "sent unchanged");
    let message = USAGE.replace("\"customer_id\"", r#""Customer_id""#);
    assert_eq!(rejected(Queue::Usage, message), "customer_id: missing");
}

#[test]
fn correlation_and_trace_are_taken_where_they_can_be_headers() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (queue, message) in [(Queue::Usage, USAGE), (Queue::Lifecycle, STARTED), (Queue::Quota, QUOTA)] {
        let noticed = |correlation: &str, traceparent: &str| {
            let message = with(&with(message, "correlation_id", correlation), "traceparent", traceparent);
            let record = accepted(queue, &message);
            (record.correlation().map(str::to_owned), record.traceparent().map(str::to_owned))
        };
        let both = (Some("corr-1".to_owned()), Some(trace.to_owned()));
        assert_eq!(noticed("\"corr-1\"", &format!("{trace:?}")), both);
        assert_eq!(noticed(r#""c\u006frr-1""#, &format!("{trace:?}")), both);
        for bad in ["\"a b\"", "\"\"", "7", "null", r#""\ud800""#, r#""a\r\nX: y""#] {
            assert_eq!(noticed(bad, bad), (None, None), "{bad}");
        }
    }
}
