//! A process that appends and settles until it is killed: this test binary itself, started again.
//!
//! It says on its standard output what it has been promised: `A from upto` appended and durable, `D n` about to be
//! settled, `F` all of these are durable. [`Account`] is what its parent makes of that.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dataplane_agent::outbox::{Durability, Log, Outbox, Settlement};

use super::{append, records, runtime, settings};

const DIR: &str = "OUTBOX_CHILD_DIR";
const FROM: &str = "OUTBOX_CHILD_FROM";
/// Far longer than it takes.
const STARTS_WITHIN: Duration = Duration::from_mins(1);
const PROCESS: &str = "OUTBOX_CHILD_PROCESS";

/// Not a test: what the started process does. Without its variables it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let from = std::env::var(FROM).unwrap().parse().unwrap();
    runtime().block_on(work(Path::new(&dir), from));
}

async fn work(dir: &Path, from: u64) {
    let durability =
        if std::env::var_os(PROCESS).is_some() { Durability::Process } else { Durability::Fsync };
    let (outbox, _threads) =
        Outbox::open(dataplane_agent::outbox::Settings { durability, ..settings(dir) }).unwrap();
    let mut out = std::io::stdout();
    let mut say = move |line: String| {
        // One write a line: what arrives is whole.
        out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    };
    let (mut next, mut round) = (from, from);
    loop {
        round += 1;
        let upto = next + 1 + round.wrapping_mul(7919) % 150;
        append(&outbox, records::records(next..upto)).await.unwrap();
        say(format!("A {next} {upto}"));
        next = upto;
        if round.is_multiple_of(3) {
            // Settles a part of what waits, from the front and here and there.
            let end = *outbox.last().borrow() + 1;
            let lease = outbox.lease(Log::Usage, 0, end, 300).await.unwrap();
            for (at, leased) in lease.records.iter().enumerate() {
                if at % 5 != 1 || round.is_multiple_of(2) {
                    say(format!("D {}", records::number(leased)));
                    outbox.settle(&leased.ticket, Settlement::Delivered);
                }
            }
            if round.is_multiple_of(9) && outbox.flush().await {
                say("F".to_owned());
            }
        }
    }
}

/// What the processes of one outbox have been promised.
#[derive(Default)]
pub(super) struct Account {
    pub appended: BTreeSet<u64>,
    /// Settled, but perhaps not durably.
    pub leaving: BTreeSet<u64>,
    /// Settled durably.
    pub left: BTreeSet<u64>,
    /// The first number that was never used.
    pub next: u64,
}

impl Account {
    /// Starts a child and kills it this soon, most likely while it opens the outbox.
    pub(super) fn kill_early(&mut self, dir: &Path, length: Duration) {
        self.run_from(false, dir, false, length, |child| child.kill().unwrap());
    }

    /// Runs a child for a while, then has `end` end it; notes what it said.
    pub(super) fn run(&mut self, dir: &Path, process: bool, length: Duration, end: impl FnOnce(&mut Child)) {
        self.run_from(true, dir, process, length, end);
    }

    /// The while begins with its start, or, `at_work`, when it has appended something.
    fn run_from(
        &mut self,
        at_work: bool,
        dir: &Path,
        process: bool,
        length: Duration,
        end: impl FnOnce(&mut Child),
    ) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "outbox::child::child", "--nocapture", "--test-threads=1"]);
        command.env(DIR, dir).env(FROM, self.next.to_string()).env_remove(PROCESS);
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
            // However long it takes to start here: it works for this long.
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
                ["F"] => self.left.append(&mut self.leaving),
                _ => {}
            }
        }
        // What it was about to append when it died may be there too: those numbers are used.
        self.next += 1000;
    }

    /// Opens the outbox and compares: how many records are lost. Panics if one is mangled, doubled, or back.
    pub(super) fn settle_accounts(&mut self, dir: &Path, process: bool) -> usize {
        let durability = if process { Durability::Process } else { Durability::Fsync };
        let found = runtime().block_on(async {
            let (outbox, threads) =
                Outbox::open(dataplane_agent::outbox::Settings { durability, ..settings(dir) }).unwrap();
            let found: Vec<u64> = super::waiting(&outbox).await.iter().map(records::number).collect();
            let stats = outbox.stats();
            let aside = outbox.quarantine().unwrap();
            assert!(process || stats.quarantined_segments == 0, "{stats:?} {aside:?}");
            assert_eq!(stats.total_depth() as usize, found.len());
            super::close(outbox, threads);
            found
        });
        let once: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(once.len(), found.len(), "a record is there twice");
        assert!(found.is_sorted(), "the order of the log");
        let back = self.left.intersection(&once).count();
        assert!(process || back == 0, "{back} records were settled durably, and are back");
        let gone = |n: &&u64| !once.contains(n) && !self.left.contains(n) && !self.leaving.contains(n);
        let lost = self.appended.iter().filter(gone).count();
        // From here on what waits is what was found: also what was committed and not told.
        self.appended.clone_from(&once);
        self.left.append(&mut self.leaving);
        self.left.retain(|n| !once.contains(n));
        lost
    }
}
