//! What the main job costs, in figures and as ratios within the run. `make bench`, or `cargo bench -- <part>`.
//!
//! Everything is real and on this machine: redis-server, the sandbox, the agent, each a process of its own.

#![allow(clippy::expect_used, reason = "what fails here fails the run")]

mod afternoon;
mod faults;
#[path = "../../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod harness;
mod intake;
mod latency;
mod outage;
mod outbox;
mod peers;
mod process;
mod rate;
mod report;
mod rounds;
mod shared;
mod surface;
mod throughput;
mod wan;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Some(records) = outbox::asked() {
        return outbox::tell(records).await;
    }
    // `cargo bench` passes flags of the standard harness; a word without a dash picks a part.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let want = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    if wanted.iter().any(|part| part == "report") {
        return report::run();
    }
    if wanted.iter().any(|part| part == wan::lossy::INSIDE) {
        return wan::lossy::inside().await;
    }
    // It takes long, and is asked for by its name.
    if wanted.iter().any(|part| part == "wan") {
        wan::run().await;
        return wan::lossy::run();
    }
    let mut base = None;
    for (part, records) in [("outbox-100k", 100_000), ("outbox-1m", 1_000_000), ("outbox-10m", 10_000_000)] {
        if want(part) {
            outbox::run(report::scaled(records).into(), &mut base);
        }
    }
    if want("throughput") {
        throughput::run().await;
    }
    if want("intake") {
        intake::run().await;
    }
    if want("single") {
        intake::single().await;
    }
    if want("malformed") {
        intake::malformed().await;
    }
    if want("latency") {
        latency::push_to_control_plane().await;
    }
    if want("quota") {
        latency::quota_amid_a_backlog().await;
    }
    if want("rate") {
        rate::run().await;
    }
    if want("faults") {
        faults::run().await;
    }
    if want("surface") {
        surface::run().await;
    }
    if want("outage") {
        outage::run().await;
    }
    if want("rounds") {
        rounds::run().await;
    }
    if want("shared") {
        shared::run().await;
    }
    if want("peers") {
        peers::run().await;
    }
}
