//! Breaks of the rules about all answers, and about the counts.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use uuid::Uuid;

use super::super::proxy::{Answer, Twist};
use super::{Break, once, proxy, weather};

pub(super) fn totals() -> Vec<Break> {
    vec![
        proxy("Retry-After is no number and no date", &["retry_after"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.path.ends_with("/health") && !once() {
                    answer.fail(429);
                    answer.retry_after("soon");
                }
            })
        }),
        proxy(
            "a good answer is a page",
            &["heartbeat", "json_answers"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/heartbeat") && answer.status == 200 {
                    answer.html(200);
                }
            }),
        ),
        proxy(
            "a good answer is another's, by its correlation id",
            &["shutdown", "answers_match"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/shutdown") {
                    answer.headers.insert("x-correlation-id", "another".parse().expect("a value"));
                }
            }),
        ),
        proxy("a batch's records are taken backwards", &["session_order"], {
            let once = once();
            Twist::before(move |asked| {
                if asked.is_batch_of("batch-2") && once() {
                    let mut body: Value = serde_json::from_str(&asked.text()).expect("JSON");
                    for session in body["sessions"].as_array_mut().expect("sessions") {
                        session["records"].as_array_mut().expect("records").reverse();
                    }
                    asked.replace(body.to_string());
                }
                None
            })
        }),
        proxy("a repetition is counted again", &["counted_once"], {
            let seen = AtomicUsize::new(0);
            Twist::before(move |asked| {
                let is_usage = asked.is_single("/usage-records", "-repeated/");
                if is_usage && seen.fetch_add(1, Ordering::SeqCst) == 1 {
                    let mut body: Value = serde_json::from_str(&asked.text()).expect("JSON");
                    body["transaction_id"] = Uuid::new_v4().to_string().into();
                    asked.replace(body.to_string());
                    asked.set("idempotency-key", &Uuid::new_v4().to_string());
                    asked.set("x-was-changed", "yes");
                }
                None
            })
            .and_after(|asked, answer| {
                if !asked.header("x-was-changed").is_empty() {
                    answer.say(200, &json!({"success": true}));
                }
            })
        }),
        proxy(
            "a record that is said to be taken is lost",
            &["counted_once"],
            Twist::before(|asked| {
                let is_lost = asked.is_single("/usage-records", "/conformance-late-");
                is_lost.then(|| Answer::of(201, &json!({"success": true})))
            }),
        ),
        weather("it does not let us in", &["health"], json!({"always": 401})),
        weather("nothing is taken", &["health"], json!({"reset": 1.0})),
    ]
}
