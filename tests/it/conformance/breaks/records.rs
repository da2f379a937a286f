//! Breaks of the rules about single records and their sessions.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::super::proxy::{Answer, Twist};
use super::{Break, once, proxy};

pub(super) fn records() -> Vec<Break> {
    let unsuccessful = || json!({"success": false});
    vec![
        proxy(
            "a session cannot start",
            &["session_started"],
            Twist::after(move |asked, answer| {
                if asked.is_single("/started", "-main/") {
                    answer.say(200, &unsuccessful());
                }
            }),
        ),
        proxy("a usage record is answered 200 with success: false", &["usage_record"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.is_single("/usage-records", "-main/") && once() {
                    answer.say(200, &unsuccessful());
                }
            })
        }),
        proxy(
            "a quota answer lacks a field",
            &["quota_refresh"],
            Twist::after(|asked, answer| {
                if asked.is_single("/refresh", "-main/") {
                    answer.change(|body| {
                        body["data"].as_object_mut().expect("data").remove("final_quota");
                    });
                }
            }),
        ),
    ]
}

pub(super) fn repetitions() -> Vec<Break> {
    vec![
        proxy(
            "a repetition is refused",
            &["repeated"],
            Twist::after(|asked, answer| {
                if asked.path.contains("-repeated/") && answer.status == 409 {
                    answer.fail(422);
                }
            }),
        ),
        proxy(
            "a repetition is answered 409 with Retry-After",
            &["repeated"],
            Twist::after(|asked, answer| {
                if asked.path.contains("-repeated/") && answer.status == 409 {
                    answer.retry_after("1");
                }
            }),
        ),
        proxy(
            "a repetition is answered 409 with a page",
            &["repeated", "json_answers"],
            Twist::after(|asked, answer| {
                if asked.path.contains("-repeated/") && answer.status == 409 {
                    answer.html(409);
                }
            }),
        ),
        proxy("a repetition with another body is refused", &["repeated_with_another_body"], {
            let bodies = Mutex::new(HashMap::new());
            Twist::before(move |asked| {
                let mut bodies = bodies.lock().expect("no test panics here");
                let key = asked.header("idempotency-key").to_owned();
                let first = bodies.entry(key).or_insert_with(|| asked.body.clone());
                (*first != asked.body && asked.path.ends_with("/usage-records")).then(|| Answer::failure(422))
            })
        }),
        proxy("the same record twice at once is answered 500", &["concurrent_repeat"], {
            let seen = AtomicUsize::new(0);
            Twist::before(move |asked| {
                let is_of_both = asked.is_single("/usage-records", "-twice/");
                let is_second = is_of_both && seen.fetch_add(1, Ordering::SeqCst) == 1;
                is_second.then(|| Answer::failure(500))
            })
        }),
        proxy("a first attempt stays under way for ever", &["concurrent_repeat"], {
            let seen = AtomicUsize::new(0);
            Twist::before(move |asked| {
                let is_of_both = asked.is_single("/usage-records", "-twice/");
                let is_later = is_of_both && seen.fetch_add(1, Ordering::SeqCst) > 0;
                is_later.then(|| {
                    let mut answer = Answer::failure(409);
                    answer.retry_after("0");
                    answer
                })
            })
        }),
    ]
}

pub(super) fn refusals() -> Vec<Break> {
    vec![
        proxy(
            "unknown fields are refused",
            &["unknown_fields"],
            Twist::before(|asked| asked.text().contains("conformance_nested").then(|| Answer::failure(422))),
        ),
        proxy(
            "a path is decoded before it is taken apart",
            &["session_id_encoding"],
            Twist::before(|asked| asked.path.contains("%2F").then(|| Answer::failure(404))),
        ),
        proxy(
            "what is no record is answered 500",
            &["refusal"],
            Twist::after(|asked, answer| {
                if !asked.is_batch() && answer.status == 422 {
                    answer.fail(500);
                }
            }),
        ),
        proxy(
            "what is no record is refused with a page",
            &["refusal", "json_answers"],
            Twist::after(|asked, answer| {
                if !asked.is_batch() && answer.status == 422 {
                    answer.html(400);
                }
            }),
        ),
    ]
}

pub(super) fn sessions() -> Vec<Break> {
    vec![
        proxy(
            "a record of an unknown session is refused",
            &["unknown_session"],
            Twist::after(|asked, answer| {
                if asked.is_single("/usage-records", "/conformance-unknown-") {
                    answer.fail(422);
                }
            }),
        ),
        proxy(
            "a session that has started stays unknown",
            &["session_becomes_known"],
            Twist::before(|asked| {
                asked.is_single("/usage-records", "/conformance-late-").then(|| Answer::failure(404))
            }),
        ),
        proxy(
            "a session cannot end",
            &["session_completed", "counted_once"],
            Twist::after(|asked, answer| {
                if asked.is_single("/completed", "-main/") {
                    answer.fail(405);
                }
            }),
        ),
    ]
}
