//! A process that appends and settles until it is killed: this test binary, started again.
//!
//! It reports on standard output what it was promised: `A from upto` appended and durable, `D n` about to be settled, `B n`
//! about to become a dead letter, `F` all of these are durable. Its parent collects this in an [`Account`].

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dataplane_agent::outbox::{DeadLetter, Durability, Log, OpenError, Outbox, Payload, Settlement};

use super::{append, records, runtime, settings};

const DIR: &str = "OUTBOX_CHILD_DIR";
const FROM: &str = "OUTBOX_CHILD_FROM";
/// Far longer than it takes.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
const PROCESS: &str = "OUTBOX_CHILD_PROCESS";
const DEAD_LETTERS: &str = "OUTBOX_CHILD_DEAD_LETTERS";
/// Delay of a retry after the storage has failed.
const AGAIN: Duration = Duration::from_millis(20);

/// Not a test: the code of the started process. Without its variables it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let from = std::env::var(FROM).unwrap().parse().unwrap();
    runtime().block_on(work(Path::new(&dir), from));
}

async fn work(dir: &Path, from: u64) {
    let durability =
        if std::env::var_os(PROCESS).is_some() { Durability::Process } else { Durability::Fsync };
    let dead_letters = std::env::var_os(DEAD_LETTERS).is_some();
    let open = || Outbox::open(dataplane_agent::outbox::Settings { durability, ..settings(dir) });
    // As the agent would be restarted.
    let (outbox, _threads) = open().or_else(|_| open()).unwrap();
    let mut out = std::io::stdout();
    let mut say = move |line: String| {
        // One write per line: lines arrive whole.
        out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    };
    let (mut next, mut round) = (from, from);
    loop {
        round += 1;
        let upto = next + 1 + round.wrapping_mul(7919) % 150;
        // Nothing of a refused append is stored.
        while append(&outbox, records::records(next..upto)).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
        say(format!("A {next} {upto}"));
        next = upto;
        if round.is_multiple_of(3) {
            // Settles some of the waiting records, from the front and scattered.
            let end = *outbox.last().borrow() + 1;
            let Ok(page) = outbox.read(Log::Usage, 0, end, 300).await else { continue };
            for (at, unsettled) in page.records.iter().enumerate() {
                if dead_letters && at % 7 == 2 {
                    say(format!("B {}", records::number(unsettled)));
                    outbox.settle_as_dead_letter(&unsettled.ticket, super::letter(unsettled));
                } else if at % 5 != 1 || round.is_multiple_of(2) {
                    say(format!("D {}", records::number(unsettled)));
                    outbox.settle(&unsettled.ticket, Settlement::Delivered);
                }
            }
            if round.is_multiple_of(9) && outbox.flush().await {
                say("F".to_owned());
            }
        }
    }
}

/// What the processes of one outbox were promised.
#[derive(Default)]
pub(super) struct Account {
    pub appended: BTreeSet<u64>,
    /// Settled, but maybe not durably.
    pub leaving: BTreeSet<u64>,
    /// Settled durably.
    pub left: BTreeSet<u64>,
    /// Dead-lettered, but maybe not durably.
    pub dead_lettering: BTreeSet<u64>,
    /// Dead-lettered durably.
    pub dead_lettered: BTreeSet<u64>,
    /// Records that a dead process may or may not have settled.
    undecided: BTreeSet<u64>,
    /// Additional environment variables of the child.
    pub env: Vec<(&'static str, std::ffi::OsString)>,
    /// The first unused number.
    pub next: u64,
}

impl Account {
    /// Starts a child and kills it this soon, most likely while it opens the outbox.
    pub(super) fn kill_early(&mut self, dir: &Path, length: Duration) {
        self.run_from(false, dir, false, length, |child| child.kill().unwrap());
    }

    /// Runs a child for this long, then lets `end` end it; notes its output.
    pub(super) fn run(&mut self, dir: &Path, process: bool, length: Duration, end: impl FnOnce(&mut Child)) {
        self.run_from(true, dir, process, length, end);
    }

    /// The time begins at its start or, with `at_work`, at its first append.
    fn run_from(
        &mut self,
        at_work: bool,
        dir: &Path,
        process: bool,
        length: Duration,
        end: impl FnOnce(&mut Child),
    ) {
        self.undecided.append(&mut self.leaving);
        self.undecided.append(&mut self.dead_lettering);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "outbox::child::child", "--nocapture", "--test-threads=1"]);
        command.env(DIR, dir).env(FROM, self.next.to_string()).env_remove(PROCESS);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if process {
            command.env(PROCESS, "1");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (begins, begun) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            let told = lines.inspect(|line| {
                if line.starts_with("A ") {
                    // Nobody may be listening any more.
                    let _ = begins.send(());
                }
            });
            told.collect::<Vec<_>>()
        });
        if at_work {
            // However long it takes to start: it works for this long.
            let _ = begun.recv_timeout(STARTS_WITHIN);
        }
        std::thread::sleep(length);
        end(&mut child);
        // It may be dead already.
        let _ = child.kill();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["A", from, upto] => {
                    let upto = upto.parse().unwrap();
                    self.appended.extend(from.parse().unwrap()..upto);
                    self.next = self.next.max(upto);
                }
                ["D", n] => drop(self.leaving.insert(n.parse().unwrap())),
                ["B", n] => drop(self.dead_lettering.insert(n.parse().unwrap())),
                ["F"] => {
                    self.left.append(&mut self.leaving);
                    self.dead_lettered.append(&mut self.dead_lettering);
                }
                _ => {}
            }
        }
        // Records it was about to append when it died may be stored too: their numbers are used.
        self.next += 1000;
    }

    /// A child that also creates dead letters.
    pub(super) fn with_letters(mut self) -> Self {
        self.env.push((DEAD_LETTERS, "1".into()));
        self
    }

    /// Opens the outbox and compares; returns how many records are lost. Panics if one is mangled, duplicated, or back.
    pub(super) fn settle_accounts(&mut self, dir: &Path) -> usize {
        let (found, letters) = runtime().block_on(async {
            let (outbox, threads) = Outbox::open(settings(dir)).unwrap();
            let found: Vec<u64> = super::waiting(&outbox).await.iter().map(records::number).collect();
            let letters = letters(&outbox).await;
            let (stats, aside) = (outbox.stats(), outbox.quarantine().unwrap());
            assert_eq!(stats.quarantined_segments, 0, "{stats:?} {aside:?}");
            // The counters match what is there, and each record is counted once.
            assert_eq!(stats.total_depth() as usize, found.len(), "{stats:?}");
            assert_eq!(stats.dead_letters as usize, letters.len(), "{stats:?}");
            assert_eq!(
                stats.dead_lettered.iter().flatten().sum::<u64>() as usize,
                letters.len(),
                "{stats:?}"
            );
            let all = |counts: [u64; 5]| counts.iter().sum::<u64>() as usize;
            let gone = all(stats.delivered) + all(stats.duplicates) + all(stats.exported);
            assert_eq!(all(stats.enqueued), gone + letters.len() + found.len(), "{stats:?}");
            super::close(outbox, threads);
            (found, letters)
        });
        assert!(found.is_sorted(), "the order of the log");
        let once: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(once.len(), found.len(), "a record is there twice");
        let dead: BTreeSet<u64> = letters.iter().copied().collect();
        assert_eq!(dead.len(), letters.len(), "a dead letter is there twice");
        assert_eq!(once.intersection(&dead).count(), 0, "a record waits and is a dead letter");
        let back = self.left.intersection(&once).count() + self.dead_lettered.intersection(&once).count();
        assert_eq!(back, 0, "{back} records were settled durably, and are back");
        let letters_lost = self.dead_lettered.difference(&dead).count();
        assert_eq!(
            letters_lost,
            0,
            "of {} durable dead letters {letters_lost} are lost",
            self.dead_lettered.len()
        );
        let lost = self.lost(&once, &dead);
        // From here on the records found are the waiting ones, including those committed but not reported.
        self.appended.clone_from(&once);
        self.left.append(&mut self.leaving);
        self.left.append(&mut self.undecided);
        self.left.retain(|n| !once.contains(n) && !dead.contains(n));
        (self.dead_lettered, self.dead_lettering) = (dead, BTreeSet::new());
        lost
    }

    fn lost(&self, found: &BTreeSet<u64>, dead: &BTreeSet<u64>) -> usize {
        let is_there = |n: &u64| found.contains(n) || dead.contains(n);
        let is_settled =
            |n: &u64| [&self.left, &self.leaving, &self.undecided].iter().any(|set| set.contains(n));
        let gone = |n: &&u64| !is_there(n) && !is_settled(n);
        self.appended.iter().filter(gone).count()
    }

    /// The same for an outbox that did not wait for its disk: how many records are lost, or the error if it cannot be
    /// opened.
    pub(super) fn losses_of_process(&mut self, dir: &Path) -> Result<usize, String> {
        let durability = Durability::Process;
        let found = runtime().block_on(async {
            let settings = dataplane_agent::outbox::Settings { durability, ..settings(dir) };
            let (outbox, threads) = Outbox::open(settings).map_err(|error: OpenError| error.to_string())?;
            let found = super::try_waiting(&outbox).await.map_err(|error| error.to_string());
            super::close(outbox, threads);
            found
        })?;
        let once: BTreeSet<u64> = found.iter().map(records::number).collect();
        let lost = self.lost(&once, &BTreeSet::new());
        self.appended.clone_from(&once);
        self.left.append(&mut self.leaving);
        Ok(lost)
    }
}

/// The numbers of the dead letters. Panics unless each record is as created.
async fn letters(outbox: &Outbox) -> Vec<u64> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let page: Vec<DeadLetter> = outbox.dead_letters(from, 500).await.unwrap();
        let Some(last) = page.last() else { return all };
        from = last.id + 1;
        for letter in page {
            let Payload::Record(record) = letter.payload else { panic!("no record") };
            all.push(records::number_of(&record));
        }
    }
}
