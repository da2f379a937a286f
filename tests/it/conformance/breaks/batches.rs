//! Breaks of the rules about batches.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use uuid::Uuid;

use super::super::proxy::{Answer, Twist};
use super::{Break, once, proxy, weather};

pub(super) fn batches() -> Vec<Break> {
    vec![
        proxy("a record of a batch is not taken for no reason", &["batch"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.is_batch_of("batch-2") && once() {
                    answer.exceptions(|exceptions| exceptions.push(json!({"index": 1, "status": 503})));
                }
            })
        }),
        proxy("a batch's answer counts otherwise", &["batch", "batch_answer"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.is_batch() && once() {
                    answer.change(|body| body["data"]["count"] = 7.into());
                }
            })
        }),
        proxy("a batch's answer is another's", &["batch", "batch_answer", "answers_match"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.is_batch() && once() {
                    answer.change(|body| body["data"]["batch"] = Uuid::new_v4().to_string().into());
                }
            })
        }),
        proxy("a batch's answer has a result a record", &["batch", "batch_answer"], {
            let once = once();
            Twist::after(move |asked, answer| {
                if asked.is_batch() && once() {
                    answer.change(|body| {
                        body["data"].as_object_mut().expect("data").remove("exceptions");
                        body["data"]["results"] = json!([200, 200, 200, 200, 200, 200]);
                    });
                }
            })
        }),
        proxy(
            "a batch that comes again is refused",
            &["batch_repeated"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("batch-2") {
                    answer.restatus(409, 422);
                }
            }),
        ),
        proxy(
            "what was taken alone is refused in a batch",
            &["batch_and_single"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("both") {
                    answer.restatus(409, 500);
                }
            }),
        ),
        proxy("what was taken in a batch is refused alone", &["batch_and_single"], {
            let seen = AtomicUsize::new(0);
            Twist::after(move |asked, answer| {
                // Two are new; the third was in a batch.
                let is_single = asked.path.contains("/sessions/") && asked.path.contains("-both/");
                if is_single && seen.fetch_add(1, Ordering::SeqCst) == 2 {
                    answer.fail(422);
                }
            })
        }),
        weather(
            "records behind one that was not taken are taken",
            &["batch_order"],
            json!({"break_batch_order": 1.0}),
        ),
        proxy(
            "records behind one that was not taken have its status",
            &["batch_order"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("failing") {
                    answer.restatus(424, 404);
                }
            }),
        ),
        proxy(
            "other sessions wait for one that failed",
            &["batch_order", "counted_once"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("failing") {
                    answer.exceptions(|exceptions| {
                        exceptions.extend([8, 9].map(|index| json!({"index": index, "status": 424})));
                    });
                }
            }),
        ),
        proxy(
            "one record's failure is the whole batch's",
            &["batch_order"],
            Twist::before(|asked| asked.is_batch_of("failing").then(|| Answer::failure(500))),
        ),
    ]
}

pub(super) fn batches_by_position() -> Vec<Break> {
    vec![
        proxy(
            "positions are counted within a session",
            &["batch_positions", "batch_isolation", "counted_once"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("mixed-1") {
                    answer.exceptions(|exceptions| exceptions[1]["index"] = 1.into());
                }
            }),
        ),
        proxy(
            "positions are counted from 1",
            &["batch_positions", "batch_isolation", "counted_once"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("mixed-1") {
                    answer.exceptions(|exceptions| {
                        exceptions[0]["index"] = 3.into();
                        exceptions[1]["index"] = 8.into();
                    });
                }
            }),
        ),
        proxy(
            "one bad record has the whole batch refused",
            &["batch_positions", "batch_isolation"],
            Twist::before(|asked| asked.is_batch_of("mixed-1").then(|| Answer::failure(422))),
        ),
        proxy(
            "a refused record stops its session",
            &["batch_isolation", "counted_once"],
            Twist::after(|asked, answer| {
                if asked.is_batch_of("mixed-1") {
                    answer.exceptions(|exceptions| exceptions.push(json!({"index": 3, "status": 424})));
                }
            }),
        ),
    ]
}

pub(super) fn encodings() -> Vec<Break> {
    let refuse = |encoding: &'static str, status| {
        Twist::before(move |asked| {
            (asked.header("content-encoding") == encoding).then(|| Answer::failure(status))
        })
    };
    vec![
        proxy("gzip is answered 400", &["gzip"], refuse("gzip", 400)),
        proxy(
            "gzip is answered 415, and named as taken",
            &["gzip"],
            refuse("gzip", 415).and_after(|_, answer| {
                answer.headers.insert("accept-encoding", "gzip, zstd".parse().expect("a value"));
            }),
        ),
        proxy("zstd is named, and not taken", &["zstd"], refuse("zstd", 415)),
    ]
}
