//! Faults of the ControlPlane, drawn from a seed.

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::load::REFUSED;

/// Fair weather: no faults, but records to be refused are refused.
pub(crate) fn fair() -> Value {
    json!({ "refuse_transactions": [REFUSED] })
}

/// A name, and the faults.
pub(crate) fn draw(dice: &mut StdRng) -> (&'static str, Value) {
    let (name, mut weather) = match dice.random_range(0..8) {
        0 | 1 => ("fair", json!({})),
        2 => ("down", json!({ "down": true })),
        3 => ("slow", json!({ "latency_ms": 20, "jitter_ms": 60 })),
        4 => ("lost answers", json!({ "lost_answer": 0.2, "reset": 0.05 })),
        5 => ("errors", json!({ "status": { "500": 0.1, "503": 0.05, "429": 0.05 }, "retry_after": "0" })),
        6 => (
            "records fail in their batch",
            json!({ "partial_batch": 0.1, "status": { "500": 0.05, "503": 0.05 }, "latency_ms": 2 }),
        ),
        _ => (
            "foreign answers",
            json!({ "bad_body": "not_json", "bad_body_chance": 0.05, "foreign_batch": 0.05, "lost_answer": 0.05 }),
        ),
    };
    weather["refuse_transactions"] = json!([REFUSED]);
    (name, weather)
}
