//! Each way to break the contract, with exactly the rules that detect it. A server that takes a record but denies it is
//! also detected by the counts.

mod batches;
mod records;
mod servers;
mod totals;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::proxy::Twist;

/// A ControlPlane that breaks something.
pub(super) struct Break {
    /// Its behaviour.
    pub(super) what: &'static str,
    /// The rules reported as broken.
    pub(super) found: &'static [&'static str],
    pub(super) by: By,
}

/// How it is produced.
pub(super) enum By {
    /// The sandbox's own weather.
    Weather(Value),
    /// A proxy in front of it.
    Proxy(Twist),
}

fn proxy(what: &'static str, found: &'static [&'static str], twist: Twist) -> Break {
    Break { what, found, by: By::Proxy(twist) }
}

fn weather(what: &'static str, found: &'static [&'static str], weather: Value) -> Break {
    Break { what, found, by: By::Weather(weather) }
}

/// Returns true the first time only.
fn once() -> impl Fn() -> bool + Send + Sync {
    let done = AtomicBool::new(false);
    move || !done.swap(true, Ordering::SeqCst)
}

/// All breaks.
pub(super) fn all() -> Vec<Break> {
    let groups = [
        servers::servers(),
        servers::credentials(),
        servers::commands(),
        records::records(),
        records::repetitions(),
        records::refusals(),
        records::sessions(),
        batches::batches(),
        batches::batches_by_position(),
        batches::encodings(),
        totals::totals(),
    ];
    groups.into_iter().flatten().collect()
}
