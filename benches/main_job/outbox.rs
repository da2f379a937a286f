//! The outbox alone, its barrier on: filled in commits of 1,000, held, opened again and drained, beside a plain file.
//!
//! Each size is measured in a process of its own, this binary started again, so that its memory is the outbox's alone.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use dataplane_agent::outbox::{Durability, Entry, Log, Outbox, Settings, Settlement, Threads};
use dataplane_agent::record::{Acceptor, Enrichment, Queue, UnknownFields};
use serde::{Deserialize, Serialize};

use super::process::{peak_mib, reset_peak};
use super::report::{PEAK, RATE, number, row};

/// Says to a process that it is one of those, and how many records it is to measure with.
const CHILD: &str = "OUTBOX_BENCH_RECORDS";
const COMMIT: u64 = 1000;
/// Commits under way: what the intake has.
const PIPELINE: usize = 3;
/// The plain file's rate does not depend on how long it is written.
const PLAIN_COMMITS: u64 = 1000;
const SINGLE_COMMITS: usize = 500;
/// A short run says little by itself: this many are made, and the median of each figure is taken.
const SHORT: u64 = 200_000;
const SHORT_RUNS: usize = 5;
const SEGMENT_BYTES: u64 = 64 << 20;
const HOLD: Duration = Duration::from_secs(1);

/// What one run measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Figures {
    record_bytes: f64,
    /// Records a second.
    plain: f64,
    append: f64,
    /// Until the last of them was leased and given to be settled.
    lease: f64,
    /// Until the last settlement was durable: from then on a crash sends nothing twice.
    drain: f64,
    /// Milliseconds.
    single_p50: f64,
    single_p99: f64,
    /// Of the records' JSON.
    disk_share: f64,
    open_seconds: f64,
    /// MiB, each at the peak.
    filling: f64,
    holding: f64,
    draining: f64,
    given_back_seconds: f64,
    left_bytes: f64,
}

impl Figures {
    fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(figure).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            record_bytes: of(|run| run.record_bytes),
            plain: of(|run| run.plain),
            append: of(|run| run.append),
            lease: of(|run| run.lease),
            drain: of(|run| run.drain),
            single_p50: of(|run| run.single_p50),
            single_p99: of(|run| run.single_p99),
            disk_share: of(|run| run.disk_share),
            open_seconds: of(|run| run.open_seconds),
            filling: of(|run| run.filling),
            holding: of(|run| run.holding),
            draining: of(|run| run.draining),
            given_back_seconds: of(|run| run.given_back_seconds),
            left_bytes: of(|run| run.left_bytes),
        }
    }
}

/// Measures with so many records, and prints. `base` are the figures of a smaller size, made in this run.
pub(crate) fn run(records: u64, base: &mut Option<Base>) {
    let base = base.get_or_insert_with(Base::measure);
    let figures = if records == Base::RECORDS { base.0.clone() } else { measure(records) };
    let Figures { record_bytes, plain, append, lease, drain, .. } = figures;
    println!(
        "outbox, fdatasync on (asked: ≥ 200000 records/s in, ≥ 0.15 of a plain file's; ≥ 500000 out, durably;"
    );
    println!(
        "  a record's commit < 1 ms; < 0.5 of the JSON on the disk; opened in < 2000 ms; < 64 MiB at each peak;"
    );
    println!("  disk given back in ≤ 10 s, < 2 segments left):");
    let of_phase = |phase: &str, columns: &[(&str, f64)]| {
        row(
            "outbox",
            &format!("{} records of {record_bytes:.0} bytes, {phase}", number(records as f64)),
            columns,
        );
    };
    let (of_plain, of_json) = ("× a plain file's", "of the JSON's bytes on the disk");
    let filling =
        [(RATE, append), (of_plain, append / plain), (PEAK, figures.filling), (of_json, figures.disk_share)];
    of_phase("in", &filling);
    of_phase("one commit", &[("ms at p50", figures.single_p50), ("ms at p99", figures.single_p99)]);
    of_phase("opened", &[(PEAK, figures.holding), ("ms to open", figures.open_seconds * 1e3)]);
    of_phase("leased", &[(RATE, lease)]);
    of_phase("out, durably", &[(RATE, drain), (of_plain, drain / plain), (PEAK, figures.draining)]);
    let left = figures.left_bytes / SEGMENT_BYTES as f64;
    of_phase("disk given back", &[("s", figures.given_back_seconds), ("segments left", left)]);
    if records != Base::RECORDS {
        let (of_append, of_drain) = (append / base.0.append, drain / base.0.drain);
        // A hundred thousand are leased before the first commit of settlements: that part alone is not a drain.
        println!(
            "  against {} records in this run: appending {of_append:.2}, draining {of_drain:.2} (asked: both ≥ 0.8); leasing {:.2}",
            Base::RECORDS,
            lease / base.0.lease
        );
    }
}

/// The figures that larger sizes are compared with.
#[derive(Clone)]
pub(crate) struct Base(Figures);

impl Base {
    pub(crate) const RECORDS: u64 = 100_000;

    fn measure() -> Self {
        Self(measure(Self::RECORDS))
    }
}

fn measure(records: u64) -> Figures {
    let runs = if records < SHORT { SHORT_RUNS } else { 1 };
    let runs: Vec<Figures> = (0..runs).map(|_| measure_once(records)).collect();
    Figures::median(&runs)
}

fn measure_once(records: u64) -> Figures {
    let binary = std::env::current_exe().expect("this binary");
    let output = Command::new(binary).env(CHILD, records.to_string()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
    serde_json::from_str(&said).expect("figures")
}

/// How many records this process is to measure with, if it was started for that.
pub(crate) fn asked() -> Option<u64> {
    std::env::var(CHILD).ok().map(|records| records.parse().expect("a number"))
}

/// Prints the figures for whoever started this process.
pub(crate) async fn tell(records: u64) {
    println!("{}", serde_json::to_string(&figures(records).await).expect("JSON"));
}

async fn figures(records: u64) -> Figures {
    // Not in /tmp, which may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let outbox_dir = dir.path().join("outbox");
    let (messages, batch) = batch();
    let json_bytes: usize = messages.iter().map(String::len).sum();
    let plain = plain_file(&dir.path().join("plain"), &messages, records);
    drop(messages);

    reset_peak();
    let (outbox, threads) = Outbox::open(settings(&outbox_dir)).expect("it opens");
    let begun = Instant::now();
    fill(&outbox, &batch, records).await;
    let append = per_second(records, begun);
    let filling = peak();
    let disk_share = outbox.stats().disk_bytes as f64 / (json_bytes as u64 * records / COMMIT) as f64;
    let single = single_commits(&outbox, &batch[0]).await;
    drop(batch);
    close(outbox, threads);

    reset_peak();
    let begun = Instant::now();
    let (outbox, threads) = Outbox::open(settings(&outbox_dir)).expect("it opens");
    let open_seconds = begun.elapsed().as_secs_f64();
    tokio::time::sleep(HOLD).await;
    let holding = peak();

    reset_peak();
    let begun = Instant::now();
    let drained = drain(&outbox).await;
    let lease = per_second(drained, begun);
    let settled = || outbox.durable_stats().delivered.iter().sum::<u64>();
    while settled() < drained {
        assert!(begun.elapsed() < Duration::from_mins(5), "not settled: {:?}", outbox.durable_stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let drain = per_second(drained, begun);
    let draining = peak();
    let begun = Instant::now();
    while outbox.stats().segments > 1 || outbox.stats().disk_bytes >= 2 * SEGMENT_BYTES {
        assert!(begun.elapsed() < Duration::from_mins(1), "the disk is not given back: {:?}", outbox.stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let given_back_seconds = begun.elapsed().as_secs_f64();
    let left_bytes = outbox.stats().disk_bytes as f64;
    close(outbox, threads);
    Figures {
        record_bytes: json_bytes as f64 / COMMIT as f64,
        plain,
        append,
        lease,
        drain,
        single_p50: single[single.len() / 2].as_secs_f64() * 1e3,
        single_p99: single[single.len() * 99 / 100].as_secs_f64() * 1e3,
        disk_share,
        open_seconds,
        filling,
        holding,
        draining,
        given_back_seconds,
        left_bytes,
    }
}

fn settings(dir: &Path) -> Settings {
    let unused = prometheus::HistogramOpts::new("commit_seconds", "unused");
    Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 40,
        min_free_bytes: 0,
        segment_bytes: SEGMENT_BYTES,
        durability: Durability::Fsync,
        dead_letter_retention: Duration::from_hours(24),
        commit_seconds: prometheus::Histogram::with_opts(unused).expect("a histogram"),
    }
}

fn close(outbox: Outbox, threads: Threads) {
    drop(outbox);
    assert!(threads.join(), "a thread of the outbox panicked");
}

fn peak() -> f64 {
    peak_mib(std::process::id())
}

fn per_second(records: u64, begun: Instant) -> f64 {
    records as f64 / begun.elapsed().as_secs_f64()
}

/// What producers push, 400 bytes each, and the same as records.
fn batch() -> (Vec<String>, Vec<Entry>) {
    let enrichment =
        Enrichment { server_id: "edge-1".into(), region: "eu-west-1".into(), version: "1.0.0".into() };
    let acceptor = Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 18);
    let at = acceptor.at(dataplane_agent::time::now());
    let messages: Vec<String> = (0..COMMIT).map(message).collect();
    let accept = |text: &String| Entry::Record(at.accept(Queue::Usage, text.as_bytes()).expect("a record"));
    let entries = messages.iter().map(accept).collect();
    (messages, entries)
}

fn message(n: u64) -> String {
    let (transaction, session) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let (customer, bytes, audio, second) = (n % 97, n * 7919 % 1_000_000, n % 89, n % 60);
    format!(
        r#"{{"transaction_id":"{transaction}","api_session_id":"{session}","customer_id":"customer-{customer}","product_code":"speech_transcription","connection_duration_seconds":{n}.25,"data_bytes_processed":{bytes},"audio_duration_seconds":{audio}.5,"request_count":1,"request_timestamp":"2025-09-25T03:21:{second:02}.123456Z","response_timestamp":"2025-09-25T03:22:{second:02}.654321Z"}}"#
    )
}

/// The same records as lines of a file, with one `fdatasync` a commit.
fn plain_file(path: &Path, messages: &[String], records: u64) -> f64 {
    let lines = messages.join("\n").into_bytes();
    let mut file = std::fs::File::create(path).expect("a file");
    let commits = (records / COMMIT).min(PLAIN_COMMITS);
    let begun = Instant::now();
    for _ in 0..commits {
        file.write_all(&lines).expect("it is written");
        file.sync_data().expect("it is synced");
    }
    let rate = per_second(commits * COMMIT, begun);
    std::fs::remove_file(path).expect("it goes");
    rate
}

async fn fill(outbox: &Outbox, batch: &[Entry], records: u64) {
    let mut under_way = VecDeque::new();
    for _ in 0..records / COMMIT {
        under_way.push_back(outbox.append(batch.to_vec(), None).await.expect("it accepts"));
        if under_way.len() >= PIPELINE {
            under_way
                .pop_front()
                .expect("one is under way")
                .await
                .expect("an answer")
                .expect("it is durable");
        }
    }
    for last in under_way {
        last.await.expect("an answer").expect("it is durable");
    }
}

/// How long commits of one record took, sorted.
async fn single_commits(outbox: &Outbox, entry: &Entry) -> Vec<Duration> {
    let mut took = Vec::with_capacity(SINGLE_COMMITS);
    for _ in 0..SINGLE_COMMITS {
        let begun = Instant::now();
        let committed = outbox.append(vec![entry.clone()], None).await.expect("it accepts");
        committed.await.expect("an answer").expect("it is durable");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took
}

/// Leases and settles everything.
async fn drain(outbox: &Outbox) -> u64 {
    let (mut from, mut drained, end) = (0, 0, *outbox.last().borrow() + 1);
    while from < end {
        let page = outbox.read(Log::Usage, from, end, 512).await.expect("it can be read");
        outbox.settle_all(page.records.iter().map(|unsettled| (&unsettled.ticket, Settlement::Delivered)));
        drained += page.records.len() as u64;
        from = page.next;
    }
    drained
}
