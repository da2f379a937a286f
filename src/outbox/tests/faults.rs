//! The same story repeated, with the storage failing at the first step of writing, then at the second, and so on: once the
//! process continues, once it dies there as in a power cut. Every acknowledged record is there once, settled and saved
//! records do not reappear, and the counters add up.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::rig::{Rig, entry, transaction, usage};
use crate::outbox::engine::fault;
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::format::schema::{Recent, Taken};
use crate::outbox::messages::Settlement;
use crate::outbox::threads::writer::Append;
use crate::record::{Kind, Queue, Timestamp};

const BATCH: u64 = 20;
const BATCHES: u64 = 13;

/// The contents of each batch. Created once: that takes longer than everything else.
fn entries(batch: u64) -> &'static [Entry] {
    static BATCHES_MADE: OnceLock<Vec<Vec<Entry>>> = OnceLock::new();
    let make = |batch| {
        let mut entries = usage(batch * BATCH, BATCH, 15_000);
        entries.push(entry(Kind::Lifecycle, batch, 10));
        entries
    };
    &BATCHES_MADE.get_or_init(|| (0..BATCHES).map(make).collect())[batch as usize]
}

/// One run of the story.
struct Story<'a> {
    dir: &'a std::path::Path,
    rig: Option<Rig>,
    conversation: u64,
    acknowledged: BTreeSet<String>,
    settled: BTreeSet<String>,
    /// Settled as of the last save without a failed step.
    saved: BTreeSet<String>,
    dead_lettered: BTreeSet<String>,
    dies: bool,
}

impl Story<'_> {
    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().unwrap()
    }

    /// If the failure has happened and this run dies of it: the process is restarted.
    fn die_if_it_failed(&mut self) -> bool {
        if !self.dies || fault::is_armed() {
            return false;
        }
        self.dies = false;
        self.restart();
        true
    }

    fn restart(&mut self) {
        self.rig = None;
        self.rig = Some(Rig::open(self.dir));
    }

    /// Appends as the intake does: refused messages are taken again, unless the checkpoint shows that they are stored.
    fn append(&mut self, batch: u64) {
        let entries = entries(batch);
        loop {
            self.conversation += 1;
            let mut recent = Recent::default();
            recent.queues[Queue::Usage as usize] =
                Taken { position: batch, digests: vec![batch as u32; 3000] };
            let (done, mut answer) = tokio::sync::oneshot::channel();
            let taken = Some((self.conversation, recent));
            self.rig().writer.append(vec![Append { entries: entries.to_vec(), taken, done }]);
            let answer = answer.try_recv().unwrap();
            let has_died = self.die_if_it_failed();
            let is_there = has_died
                && self.rig().shared.state().recent.iter().any(|(_, recent)| {
                    recent.queues[Queue::Usage as usize].position == batch
                        && recent.queues[Queue::Usage as usize].digests.len() == 3000
                });
            if answer.is_ok() || is_there {
                assert!(answer.is_err() || !has_died || is_there, "an acknowledged batch has no checkpoint");
                let records = entries.iter().filter(|entry| matches!(entry, Entry::Record(_)));
                self.acknowledged.extend(records.map(transaction));
                return;
            }
            // Maintenance retries a failed ledger; until then nothing is accepted.
            self.tick(false);
        }
    }

    fn settle(&mut self, which: impl Fn(u64) -> bool) {
        let waiting = self.rig().waiting(Log::Usage);
        for (n, unsettled) in waiting.into_iter().enumerate() {
            if !which(n as u64) {
                continue;
            }
            let name = transaction(&unsettled.entry);
            if n % 30 == 7 {
                let Entry::Record(record) = unsettled.entry else { unreachable!() };
                let letter = DeadLetter {
                    id: 0,
                    reason: Reason::Refused,
                    detail: String::new(),
                    attempts: 1,
                    first_at: Timestamp(0),
                    last_at: crate::time::now(),
                    payload: Payload::Record(record),
                };
                self.rig().shared.state().settle_as_dead_letter(&unsettled.ticket, letter);
                self.dead_lettered.insert(name.clone());
            } else {
                self.rig().shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
            }
            self.settled.insert(name);
        }
    }

    fn tick(&mut self, chores: bool) {
        if chores {
            self.rig().chores();
        }
        self.rig().tick();
        if !self.die_if_it_failed() && !self.rig().shared.state().is_dirty() {
            self.saved.clone_from(&self.settled);
        }
    }

    /// Checks that waiting records are there once, and that settled ones are settled or, if unsaved, wait again.
    fn check(&mut self) {
        self.rig().check_counts();
        let waiting: Vec<String> =
            self.rig().waiting(Log::Usage).iter().map(|unsettled| transaction(&unsettled.entry)).collect();
        let once: BTreeSet<String> = waiting.iter().cloned().collect();
        assert_eq!(waiting.len(), once.len(), "a record is there twice");
        for name in &self.acknowledged {
            assert!(once.contains(name) || self.settled.contains(name), "{name} is lost");
        }
        for name in &self.saved {
            assert!(!once.contains(name), "{name} was settled and saved, and is back");
        }
        // Reappeared records must be settled again.
        self.settled.retain(|name| !once.contains(name));
        self.dead_lettered.retain(|name| !once.contains(name));
    }

    fn letters(&mut self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        self.rig()
            .shared
            .ledger
            .letters(0, |(_, letter, _)| {
                if let Payload::Record(record) = letter.unwrap().payload {
                    assert!(found.insert(record.transaction().to_owned()), "a dead letter is there twice");
                }
                true
            })
            .unwrap();
        found
    }

    fn run(&mut self) {
        for batch in 0..BATCHES {
            self.append(batch);
            match batch {
                4 => self.settle(|n| n % 30 != 3),
                8 => self.settle(|n| n % 40 != 5),
                _ => {}
            }
            if batch % 2 == 0 {
                self.tick(batch % 4 == 0);
            }
            if batch == 9 {
                self.check();
            }
        }
        // Twice: an old segment is emptied into the next only once it has been seen unchanged.
        for _ in 0..3 {
            self.tick(true);
        }
        self.check();
    }
}

fn tell(dir: &std::path::Path, fails_at: Option<u64>, dies: bool) -> u64 {
    let rig = Some(Rig::open(dir));
    fault::fail_at(fails_at);
    let mut story = Story {
        dir,
        rig,
        conversation: 0,
        acknowledged: BTreeSet::new(),
        settled: BTreeSet::new(),
        saved: BTreeSet::new(),
        dead_lettered: BTreeSet::new(),
        dies,
    };
    story.run();
    let steps = fault::seen();
    fault::fail_at(None);
    // And a crash at the end: the state on disk alone must be consistent too.
    story.tick(false);
    let saved = story.saved.clone();
    story.restart();
    story.saved = saved;
    story.check();
    let letters = story.letters();
    assert!(
        story.dead_lettered.is_subset(&letters),
        "dead letters are lost: {:?}",
        story.dead_lettered.difference(&letters)
    );
    story.settle(|n| n % 30 != 7);
    story.settle(|_| true);
    story.tick(false);
    story.tick(false);
    assert_eq!(story.rig().stats().total_depth(), 0);
    assert_eq!(story.rig().segments(), 1);
    // A large newest segment is sealed too, and then deleted.
    story.tick(true);
    story.tick(false);
    let folders = std::fs::read_dir(dir.join("segments")).unwrap().count();
    assert_eq!(folders, 1, "no settled segment keeps its space");
    assert_eq!(story.rig().stats().quarantined_segments, 0);
    steps
}

/// By default some of the cases, in seconds; with `OUTBOX_TESTS=all` each of them.
#[test]
fn nothing_is_lost_or_doubled_whichever_step_of_writing_fails() {
    let dir = tempfile::tempdir().unwrap();
    let steps = tell(dir.path(), None, false);
    assert!(steps > 40, "the story has {steps} steps of writing");
    let stride = if std::env::var_os("OUTBOX_TESTS").is_some() { 1 } else { 7 };
    let cases = (0..steps).flat_map(|step| [(step, false), (step, true)]);
    for (step, dies) in cases.step_by(stride) {
        let dir = tempfile::tempdir().unwrap();
        let outcome = std::panic::catch_unwind(|| tell(dir.path(), Some(step), dies));
        assert!(
            outcome.is_ok(),
            "when step {step} failed{}",
            if dies { " and the process died" } else { "" }
        );
    }
}
