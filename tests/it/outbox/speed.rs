//! A measurement, for `cargo test --release -- --ignored speed --nocapture`: `OUTBOX_RECORDS` records of 400 bytes in commits of
//! 1,000, appended, opened again, leased and settled; and a plain file with one `fdatasync` a commit beside it.

use std::io::Write as _;
use std::time::Instant;

use dataplane_agent::outbox::{Entry, Log, Outbox, Settings, Settlement};
use dataplane_agent::record::{Acceptor, Origin, Queue, UnknownFields};

use super::{close, runtime, settings};

const COMMIT: usize = 1000;
/// Commits under way: what the intake has.
const PIPELINE: usize = 3;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn entries() -> Vec<Entry> {
    let origin = Origin { server_id: "edge-1".into(), region: "eu-west-1".into(), version: "1.0.0".into() };
    let acceptor = Acceptor::new(&origin, UnknownFields::Forward, 1 << 18);
    let at = acceptor.at(dataplane_agent::clock::now());
    (0..COMMIT as u64)
        .map(|n| {
            let id = uuid::Uuid::new_v4();
            let text = format!(
                r#"{{"transaction_id":"{id}","api_session_id":"{}","customer_id":"customer-{}","product_code":"speech_transcription","connection_duration_seconds":{}.25,"data_bytes_processed":{},"audio_duration_seconds":{}.5,"request_count":1,"request_timestamp":"2025-09-25T03:21:{:02}.123456Z","response_timestamp":"2025-09-25T03:22:{:02}.654321Z"}}"#,
                uuid::Uuid::new_v4(), n % 500, n % 97, n * 7919 % 1_000_000, n % 89, n % 60, n % 60
            );
            Entry::Record(at.accept(Queue::Usage, text.as_bytes()).unwrap())
        })
        .collect()
}

fn per_second(records: u64, begun: Instant) -> f64 {
    records as f64 / begun.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let records = std::env::var("OUTBOX_RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000_u64);
    let dir = tempfile::tempdir_in(".").unwrap();
    let settings =
        || Settings { segment_bytes: 64 << 20, max_bytes: 1 << 40, ..settings(&dir.path().join("outbox")) };
    let batch = entries();
    let bytes: usize =
        batch.iter().map(|entry| if let Entry::Record(r) = entry { r.body().len() } else { 0 }).sum();
    println!("{} bytes a record", bytes / COMMIT);

    let lines = vec![b'x'; bytes];
    let mut file = std::fs::File::create(dir.path().join("plain")).unwrap();
    let begun = Instant::now();
    for _ in 0..(records / COMMIT as u64).min(1000) {
        file.write_all(&lines).unwrap();
        file.sync_data().unwrap();
    }
    println!("plain file: {:.0}/s", per_second(records.min(1_000_000), begun));

    runtime().block_on(async {
        let (outbox, threads) = Outbox::open(settings()).unwrap();
        let begun = Instant::now();
        let mut under_way = std::collections::VecDeque::new();
        for _ in 0..records / COMMIT as u64 {
            under_way.push_back(outbox.append(batch.clone(), None).await.unwrap());
            if under_way.len() >= PIPELINE {
                under_way.pop_front().unwrap().await.unwrap().unwrap();
            }
        }
        for last in under_way {
            last.await.unwrap().unwrap();
        }
        println!("append: {:.0}/s, {} KiB resident", per_second(records, begun), resident_kib());
        let mut single = Vec::new();
        for _ in 0..200 {
            let begun = Instant::now();
            super::append(&outbox, vec![batch[0].clone()]).await.unwrap();
            single.push(begun.elapsed());
        }
        single.sort_unstable();
        println!("one record: p50 {:?}, p99 {:?}", single[100], single[198]);
        let disk = outbox.stats().disk_bytes;
        println!("disk: {:.2} of the records' bytes", disk as f64 / outbox.stats().bytes as f64);
        close(outbox, threads);

        let begun = Instant::now();
        let (outbox, threads) = Outbox::open(settings()).unwrap();
        println!("open: {:?}, {} KiB resident", begun.elapsed(), resident_kib());
        let begun = Instant::now();
        let (mut from, mut drained, end, mut most) = (0, 0, *outbox.last().borrow() + 1, 0);
        while from < end {
            let lease = outbox.lease(Log::Usage, from, end, 512).await.unwrap();
            outbox.settle_all(lease.records.iter().map(|leased| (&leased.ticket, Settlement::Delivered)));
            drained += lease.records.len() as u64;
            from = lease.next;
            if drained.is_multiple_of(1 << 17) {
                most = most.max(resident_kib());
            }
        }
        println!(
            "lease and settle: {:.0}/s, {} KiB resident",
            per_second(drained, begun),
            most.max(resident_kib())
        );
        let begun = Instant::now();
        while outbox.stats().disk_bytes > 128 << 20 || outbox.stats().segments > 1 {
            assert!(begun.elapsed().as_secs() < 10, "{:?}", outbox.stats());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        println!("disk given back after {:?}: {} bytes", begun.elapsed(), outbox.stats().disk_bytes);
        close(outbox, threads);
    });
}
