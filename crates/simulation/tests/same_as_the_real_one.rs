//! Goal: the outbox behaves the same on a simulated disk as on a real one. Method: the same random operations on both, with the
//! same observations after each.

#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;
use std::time::Duration;

use dataplane_agent::outbox::simulated::{
    Crash, Disk, DiskFaults, DiskOutcome, DiskStep, Driven, Pace, open_driven,
};
use dataplane_agent::outbox::{
    DeadLetter, Durability, Entry, Log, Outbox, Payload, Reason, Recent, Rejected, Settings, Settlement,
    Stats, Taken, Threads, Ticket,
};
use dataplane_agent::record::{Acceptor, Enrichment, Kind, Queue, Timestamp, UnknownFields};
use simulation::chance::Chance;

const LOGS: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

struct Good;

impl DiskFaults for Good {
    fn step(&mut self, _: DiskStep) -> DiskOutcome {
        DiskOutcome::Done
    }
    fn left(&mut self, batches: usize) -> usize {
        batches
    }
    fn undoes(&mut self) -> bool {
        true
    }
    fn free_bytes(&self) -> u64 {
        12 << 20
    }
}

impl Pace for Good {
    fn next(&self) -> Duration {
        Duration::from_millis(1)
    }
}

fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 64 << 10,
        durability: Durability::Fsync,
        dead_letter_retention: Duration::from_secs(3600),
        commit_seconds: prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("c", "c")).unwrap(),
    }
}

fn entry(number: u64, chance: &mut Chance) -> Entry {
    let ids =
        format!(r#""transaction_id":"t-{number}","api_session_id":"s-{}","customer_id":"c""#, number % 5);
    let noise = "x".repeat(chance.size(1, 5000) as usize);
    let (queue, text) = match chance.within(0, 5) {
        0 => (Queue::Quota, format!("{{{ids}}}")),
        1 => (Queue::Lifecycle, format!(r#"{{{ids},"event_type":"session_started"}}"#)),
        2 => (Queue::Lifecycle, format!(r#"{{{ids},"event_type":"session_completed"}}"#)),
        3 => {
            let (raw, detail) = (format!("no record {number}").into_bytes().into(), "no".into());
            return Entry::Rejected(Rejected { kind: Kind::Usage, accepted_at: Timestamp(1), raw, detail });
        }
        _ => (
            Queue::Usage,
            format!(
                r#"{{{ids},"connection_duration_seconds":1,"data_bytes_processed":1,"audio_duration_seconds":1,"request_timestamp":"2025-01-01T00:00:00Z","response_timestamp":"2025-01-01T00:00:01Z","x":"{noise}"}}"#
            ),
        ),
    };
    let enrichment = Enrichment { server_id: "a".into(), region: "b".into(), version: "c".into() };
    let acceptor = Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 20);
    Entry::Record(acceptor.at(Timestamp(1_764_000_000_000_000)).accept(queue, text.as_bytes()).unwrap())
}

/// The observable state of an outbox.
#[derive(Debug, PartialEq)]
struct View {
    waiting: Vec<(Log, u64, String)>,
    letters: Vec<(u64, Reason, Vec<u8>)>,
    counted: [[u64; 5]; 6],
    taken: Vec<(u64, usize)>,
}

async fn waiting(outbox: &Outbox, log: Log) -> Vec<(Ticket, Entry)> {
    let (mut all, mut from, end) = (Vec::new(), 0, *outbox.last().borrow() + 1);
    while from < end {
        let page = outbox.read(log, from, end, 50).await.unwrap();
        all.extend(page.records.into_iter().map(|unsettled| (unsettled.ticket, unsettled.entry)));
        from = page.next;
    }
    all
}

async fn view(outbox: &Outbox) -> View {
    assert!(outbox.flush().await);
    let mut seen = Vec::new();
    for log in LOGS {
        for (ticket, entry) in waiting(outbox, log).await {
            let Entry::Record(record) = entry else { panic!("a record") };
            seen.push((log, ticket.seq, record.transaction().to_owned()));
        }
    }
    let letters = outbox.dead_letters(0, 10_000).await.unwrap();
    let letters = letters.iter().map(|letter| (letter.id, letter.reason, letter.original().into_owned()));
    let Stats { enqueued, delivered, duplicates, exported, dead_lettered, depth, .. } =
        outbox.durable_stats();
    let dead_lettered = dead_lettered.map(|reasons| reasons.iter().sum());
    let taken = outbox.recently_taken(Queue::Usage);
    View {
        waiting: seen,
        letters: letters.collect(),
        counted: [enqueued, delivered, duplicates, exported, dead_lettered, depth],
        taken: taken.iter().map(|taken| (taken.position, taken.digests.len())).collect(),
    }
}

/// One operation; both outboxes use the same random numbers.
async fn operate(outbox: &Outbox, chance: &mut Chance, next: &mut u64) {
    match chance.within(0, 4) {
        0 | 1 => {
            let count = chance.size(1, 80);
            let entries: Vec<Entry> = (*next..*next + count).map(|number| entry(number, chance)).collect();
            let mut recent = Recent::default();
            recent.queues[Queue::Usage as usize] =
                Taken { position: *next, digests: vec![7; count as usize] };
            *next += count;
            outbox.append(entries, Some((1, recent))).await.unwrap().await.unwrap().unwrap();
        }
        2 | 3 => {
            let log = chance.of(&LOGS);
            let keep = chance.within(1, 5);
            for (n, (ticket, _)) in waiting(outbox, log).await.into_iter().enumerate() {
                if n as u64 % 5 < keep {
                    outbox.settle(&ticket, chance.of(&[Settlement::Delivered, Settlement::Duplicate]));
                }
            }
        }
        _ => {
            for (ticket, entry) in waiting(outbox, chance.of(&LOGS)).await.into_iter().take(2) {
                let Entry::Record(record) = entry else { panic!("a record") };
                let (first_at, last_at) = (record.accepted_at(), Timestamp(1));
                let (reason, payload) = (Reason::Refused, Payload::Record(record));
                let detail = "no".into();
                outbox.settle_as_dead_letter(
                    &ticket,
                    DeadLetter { id: 0, reason, detail, attempts: 1, first_at, last_at, payload },
                );
            }
        }
    }
}

/// The process dies before this step of the disk, and a power cut undoes what was not synced.
struct DiesAt(u64);

impl DiskFaults for DiesAt {
    fn step(&mut self, _: DiskStep) -> DiskOutcome {
        self.0 = self.0.wrapping_sub(1);
        if self.0 == 0 { DiskOutcome::DiesBefore } else { DiskOutcome::Done }
    }
    fn left(&mut self, _: usize) -> usize {
        0
    }
    fn undoes(&mut self) -> bool {
        true
    }
    fn free_bytes(&self) -> u64 {
        12 << 20
    }
}

#[test]
fn a_half_created_ledger_is_durable_before_the_next_process_uses_it() {
    for step in 1..20 {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::new(Box::new(DiesAt(step)));
            Disk::use_here(Some(disk.clone()));
            // Killed during its first start.
            let started = std::panic::catch_unwind(|| drop(open_driven(settings(dir.path()))));
            if started.is_ok() {
                assert!(step > 5, "a start has more steps");
                return;
            }
            disk.crash(Crash::Kill);
            let (outbox, driven) = open_driven(settings(dir.path())).unwrap();
            let mut driven: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(driven.run(Good));
            let mut chance = Chance::new(step, 3);
            let entries: Vec<Entry> = (0..50).map(|number| entry(number, &mut chance)).collect();
            let append = async { outbox.append(entries, None).await.unwrap().await.unwrap().unwrap() };
            beside(&mut driven, append).await;
            let before = beside(&mut driven, view(&outbox)).await;
            drop((outbox, driven));
            disk.crash(Crash::Power);
            let (outbox, driven) = open_driven(settings(dir.path())).unwrap();
            let mut driven: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(driven.run(Good));
            let after = beside(&mut driven, view(&outbox)).await;
            assert_eq!(after, before, "killed at step {step}");
        });
        Disk::use_here(None);
    }
}

async fn beside<T>(
    driven: &mut std::pin::Pin<Box<dyn Future<Output = ()>>>,
    work: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        done = work => done,
        () = driven => panic!("the outbox ended"),
    }
}

fn real(dir: &Path) -> (Outbox, Threads) {
    Disk::use_here(None);
    Outbox::open(settings(dir)).unwrap()
}

fn simulated(dir: &Path, disk: &Disk) -> (Outbox, std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    Disk::use_here(Some(disk.clone()));
    let (outbox, driven): (Outbox, Driven) = open_driven(settings(dir)).unwrap();
    (outbox, Box::pin(driven.run(Good)))
}

#[test]
fn on_both_disks_the_same_operations_have_the_same_effects() {
    for seed in 0..12 {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::new(Box::new(Good));
            let (mut ours, mut threads) = real(dirs[0].path());
            let (mut theirs, mut driven) = simulated(dirs[1].path(), &disk);
            let mut chances = [Chance::new(seed, 1), Chance::new(seed, 1)];
            let mut numbers = [1, 1];
            let mut plan = Chance::new(seed, 2);
            for step in 0..25 {
                operate(&ours, &mut chances[0], &mut numbers[0]).await;
                beside(&mut driven, operate(&theirs, &mut chances[1], &mut numbers[1])).await;
                let expected = view(&ours).await;
                let found = beside(&mut driven, view(&theirs)).await;
                assert_eq!(found, expected, "seed {seed}, step {step}");
                if plan.happens(0.2) {
                    drop(ours);
                    assert!(threads.join());
                    (ours, threads) = real(dirs[0].path());
                    drop((theirs, driven));
                    disk.crash(plan.of(&[Crash::Kill, Crash::Power]));
                    (theirs, driven) = simulated(dirs[1].path(), &disk);
                }
            }
            drop(ours);
            assert!(threads.join());
        });
        Disk::use_here(None);
    }
}
