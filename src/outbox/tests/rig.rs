//! An outbox without its threads: each tick and append happens when the test says so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::outbox::api::handle::{MaintenanceQueue, Outbox};
use crate::outbox::engine::database::Durability;
use crate::outbox::format::codec::{Entry, Rejected};
use crate::outbox::format::log::Log;
use crate::outbox::messages::{AppendError, LogPage, Unsettled};
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::{open, quarantine};
use crate::outbox::segments::segment::ReadError;
use crate::outbox::settings::Settings;
use crate::outbox::state::shared::Shared;
use crate::outbox::state::stats::Stats;
use crate::outbox::threads::maintenance::{Maintenance, MaintenanceRequest};
use crate::outbox::threads::writer::{Append, WriteRequest, Writer};
use crate::record::{Acceptor, Enrichment, Kind, Queue, Record, UnknownFields};

pub(super) struct Rig {
    pub shared: Arc<Shared>,
    pub writer: Writer,
    pub maintenance: Maintenance,
    write_requests: mpsc::Receiver<WriteRequest>,
    sender: mpsc::Sender<WriteRequest>,
}

pub(super) fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.to_path_buf(),
        max_bytes: 1 << 30,
        min_free_bytes: 0,
        segment_bytes: 1 << 20,
        // These tests do not involve power cuts.
        durability: Durability::Process,
        dead_letter_retention: Duration::from_hours(24),
        commit_seconds: prometheus::Histogram::with_opts(prometheus::HistogramOpts::new("c", "c")).unwrap(),
    }
}

impl Rig {
    pub(super) fn open(dir: &Path) -> Self {
        Self::with(settings(dir)).unwrap()
    }

    pub(super) fn with(settings: Settings) -> Result<Self, OpenError> {
        let shared = open::restore(settings)?;
        let (sender, write_requests) = mpsc::channel(16);
        let writer = Writer::new(&shared).unwrap();
        let maintenance = Maintenance::new(Arc::clone(&shared), sender.downgrade());
        Ok(Self { shared, writer, maintenance, write_requests, sender })
    }

    pub(super) fn append(&mut self, entries: Vec<Entry>) -> Result<u64, AppendError> {
        let (done, mut answer) = oneshot::channel();
        self.writer.append(vec![Append { entries, taken: None, done }]);
        answer.try_recv().unwrap()
    }

    /// A tick of maintenance, and the requests it sends to the writer.
    pub(super) fn tick(&mut self) {
        self.maintenance.tick();
        self.pump();
    }

    /// One second's chores.
    pub(super) fn chores(&mut self) {
        self.maintenance.chores();
        self.pump();
    }

    fn pump(&mut self) {
        while let Ok(order) = self.write_requests.try_recv() {
            assert!(matches!(order, WriteRequest::Roll));
            self.writer.roll_if_used();
        }
    }

    /// Reads as the outbox does.
    pub(super) fn read(&mut self, log: Log, from: u64, upto: u64, most: usize) -> Result<LogPage, ReadError> {
        let at_hand = self.shared.at_hand(&mut self.shared.state(), (log, from, upto), most);
        at_hand.map_or_else(|| self.maintenance.read(log, from, upto, most), Ok)
    }

    /// All waiting records of a log, in order.
    pub(super) fn waiting(&mut self, log: Log) -> Vec<Unsettled> {
        let (mut all, mut from) = (Vec::new(), 0);
        let end = self.shared.state().totals.next;
        let mut again = 0;
        while from < end {
            match self.read(log, from, end, 100) {
                Ok(page) => {
                    all.extend(page.records);
                    from = page.next;
                }
                Err(error) => {
                    again += 1;
                    assert!(again < 5, "{error}");
                }
            }
            self.pump();
        }
        all
    }

    /// The stats as the outbox reports them, including the quarantine.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.shared.state().stats();
        stats.quarantined_segments += quarantine::count(&self.shared.settings.dir).0;
        stats
    }

    /// Checks invariant 8, and that the segments' counts agree.
    pub(super) fn check_counts(&self) {
        let stats = self.stats();
        for kind in 0..5 {
            let gone = stats.delivered[kind]
                + stats.duplicates[kind]
                + stats.exported[kind]
                + stats.dead_lettered[kind].iter().sum::<u64>();
            assert_eq!(stats.enqueued[kind], gone + stats.depth[kind], "kind {kind} of {stats:?}");
        }
        let catalog = self.shared.state();
        let waiting: u64 = catalog.segments.iter().map(|listed| listed.info.waiting().total()).sum();
        assert_eq!(stats.total_depth(), waiting, "{stats:?}");
    }

    /// A handle, and the requests it sends to maintenance.
    pub(super) fn outbox(&self) -> (Outbox, std::sync::mpsc::Receiver<MaintenanceRequest>) {
        let (requests, requested) = std::sync::mpsc::channel();
        let (appends, requests) = (self.sender.clone(), MaintenanceQueue::new(requests));
        (Outbox { shared: Arc::clone(&self.shared), appends, requests }, requested)
    }

    pub(super) fn segments(&self) -> usize {
        self.shared.state().segments.len()
    }
}

/// Records of every kind, with bodies that compress poorly.
pub(super) fn entry(kind: Kind, n: u64, size: usize) -> Entry {
    let words = (0..size as u64 / 16).map(|i| xxhash_rust::xxh3::xxh3_64_with_seed(&i.to_be_bytes(), n));
    let noise = words.fold(String::new(), |noise, word| noise + &format!("{word:016x}"));
    let ids =
        format!(r#""transaction_id":"t-{n}","api_session_id":"s-{}","customer_id":"c","x":"{noise}""#, n % 7);
    let (queue, text) = match kind {
        Kind::Usage => (
            Queue::Usage,
            format!(
                r#"{{{ids},"connection_duration_seconds":1,"data_bytes_processed":1,"audio_duration_seconds":1,"request_timestamp":"2025-01-01T00:00:00Z","response_timestamp":"2025-01-01T00:00:01Z"}}"#
            ),
        ),
        Kind::Quota => (Queue::Quota, format!("{{{ids}}}")),
        Kind::Started => (
            Queue::Lifecycle,
            format!(r#"{{{ids},"event_type":"session_started","metadata":{{"x":"{noise}"}}}}"#),
        ),
        Kind::Completed => (
            Queue::Lifecycle,
            format!(r#"{{{ids},"event_type":"session_completed","metadata":{{"x":"{noise}"}}}}"#),
        ),
        Kind::Lifecycle => {
            return Entry::Rejected(Rejected {
                kind,
                accepted_at: crate::time::now(),
                raw: format!("{n} {noise}").into_bytes().into(),
                detail: "no record".into(),
            });
        }
    };
    let enrichment = Enrichment { server_id: "a".into(), region: "b".into(), version: "c".into() };
    let acceptor = Acceptor::new(&enrichment, UnknownFields::Forward, 1 << 20);
    let record: Record = acceptor.at(crate::time::now()).accept(queue, text.as_bytes()).unwrap();
    Entry::Record(record)
}

/// `count` usage records, numbered from `from` on.
pub(super) fn usage(from: u64, count: u64, size: usize) -> Vec<Entry> {
    (from..from + count).map(|n| entry(Kind::Usage, n, size)).collect()
}

pub(super) fn transaction(entry: &Entry) -> String {
    match entry {
        Entry::Record(record) => record.transaction().to_owned(),
        Entry::Rejected(rejected) => String::from_utf8_lossy(&rejected.raw).into_owned(),
        Entry::Letter(letter) => String::from_utf8_lossy(&letter.original()).into_owned(),
    }
}
