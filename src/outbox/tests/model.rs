//! Random sequences of all operations on an outbox, against a plain list in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::rig::{Rig, entry, transaction};
use crate::outbox::format::codec::Entry;
use crate::outbox::format::dead_letter::{DeadLetter, Payload, Reason};
use crate::outbox::format::log::Log;
use crate::outbox::messages::{Settlement, Ticket};
use crate::outbox::segments::settlement::PACK_RECORDS;
use crate::record::{Kind, Timestamp};

#[derive(Clone, Debug)]
enum Step {
    Append {
        kinds: Vec<usize>,
        size: usize,
    },
    Settle {
        at: prop::sample::Index,
        duplicate: bool,
    },
    /// Settles all waiting records of one log except every `keep`-th.
    SettleMost {
        log: usize,
        keep: usize,
    },
    DeadLetter {
        at: prop::sample::Index,
    },
    /// Reads without settling.
    Read {
        log: usize,
    },
    Tick,
    Chores,
    /// The process dies, and unsaved changes are lost.
    Crash,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![5 => 16usize..400, 2 => 4000usize..9000, 1 => Just(200_000usize)];
    let kinds = proptest::collection::vec(0usize..5, 1..2 * PACK_RECORDS);
    prop_oneof![
        8 => (kinds, size).prop_map(|(mut kinds, size)| {
            if size > 10_000 {
                kinds.truncate(4);
            }
            Step::Append { kinds, size }
        }),
        8 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, duplicate)| Step::Settle { at, duplicate }),
        3 => (0usize..4, 2usize..90).prop_map(|(log, keep)| Step::SettleMost { log, keep }),
        2 => any::<prop::sample::Index>().prop_map(|at| Step::DeadLetter { at }),
        2 => (0usize..4).prop_map(|log| Step::Read { log }),
        5 => Just(Step::Tick),
        2 => Just(Step::Chores),
        2 => Just(Step::Crash),
        1 => Just(Step::Reopen),
    ]
}

/// The expected contents of the outbox: by log, in order.
#[derive(Clone, Default)]
struct Model {
    waiting: BTreeMap<usize, Vec<Entry>>,
    delivered: u64,
    duplicates: u64,
    letters: Vec<String>,
    /// Letters that maintenance creates from rejected messages at its next tick.
    rejected: Vec<String>,
    enqueued: u64,
}

impl Model {
    fn remove(&mut self, log: Log, ticket: &Ticket, rig: &mut Rig) -> Entry {
        let at = rig.waiting(log).iter().position(|unsettled| unsettled.ticket == *ticket).unwrap();
        self.waiting.get_mut(&log.index()).unwrap().remove(at)
    }
}

fn check(rig: &mut Rig, model: &Model) {
    rig.check_counts();
    let stats = rig.stats();
    assert_eq!(stats.enqueued.iter().sum::<u64>(), model.enqueued);
    assert_eq!(stats.delivered.iter().sum::<u64>(), model.delivered);
    assert_eq!(stats.duplicates.iter().sum::<u64>(), model.duplicates);
    for log in [Log::Quota, Log::Started, Log::Usage, Log::Completed] {
        let found: Vec<Entry> = rig.waiting(log).into_iter().map(|unsettled| unsettled.entry).collect();
        let empty = Vec::new();
        let expected = model.waiting.get(&log.index()).unwrap_or(&empty);
        assert!(found == *expected, "{log:?}: {} found, {} expected", found.len(), expected.len());
    }
}

pub(super) fn letters(rig: &Rig) -> Vec<String> {
    let mut all = Vec::new();
    rig.shared
        .ledger
        .letters(0, |(_, letter, _)| {
            all.push(letter.map_or_else(
                |error| error.to_string(),
                |letter| match letter.payload {
                    Payload::Record(record) => record.transaction().to_owned(),
                    Payload::Raw { bytes, .. } => String::from_utf8_lossy(&bytes).into_owned(),
                },
            ));
            true
        })
        .unwrap();
    all
}

pub(super) fn letter(entry: &Entry) -> DeadLetter {
    let Entry::Record(record) = entry else { panic!("a record") };
    DeadLetter {
        id: 0,
        reason: Reason::Refused,
        detail: "no".into(),
        attempts: 1,
        first_at: Timestamp(1),
        // Too young to be deleted.
        last_at: crate::time::now(),
        payload: Payload::Record(record.clone()),
    }
}

fn pick(rig: &mut Rig, at: prop::sample::Index) -> Option<(Log, Ticket, Entry)> {
    let logs = [Log::Quota, Log::Started, Log::Usage, Log::Completed];
    let mut all = Vec::new();
    for log in logs {
        all.extend(rig.waiting(log).into_iter().map(|unsettled| (log, unsettled.ticket, unsettled.entry)));
    }
    (!all.is_empty()).then(|| all.swap_remove(at.index(all.len())))
}

fn run(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let (mut model, mut next) = (Model::default(), 0);
    // The state after a crash: appends count at once, settlements as of the last tick.
    let mut saved = model.clone();
    for step in steps {
        match step {
            Step::Append { kinds, size } => {
                let entries: Vec<Entry> = kinds
                    .iter()
                    .map(|kind| {
                        next += 1;
                        entry(Kind::ALL[*kind], next, size)
                    })
                    .collect();
                let segments = rig.segments();
                rig.append(entries.clone()).unwrap();
                if rig.segments() > segments {
                    // A new segment is listed together with all settlements.
                    saved = model.clone();
                }
                for model in [&mut model, &mut saved] {
                    model.enqueued += entries.len() as u64;
                    for entry in &entries {
                        match entry.log() {
                            Log::Rejected => model.rejected.push(transaction(entry)),
                            log => model.waiting.entry(log.index()).or_default().push(entry.clone()),
                        }
                    }
                }
            }
            Step::Settle { at, duplicate } => {
                let Some((log, ticket, _)) = pick(&mut rig, at) else { continue };
                model.remove(log, &ticket, &mut rig);
                let settlement = if duplicate { Settlement::Duplicate } else { Settlement::Delivered };
                rig.shared.state().deliver(&ticket, settlement);
                // A second answer for the same record changes nothing.
                rig.shared.state().deliver(&ticket, Settlement::Delivered);
                if duplicate { model.duplicates += 1 } else { model.delivered += 1 }
            }
            Step::SettleMost { log, keep } => {
                let log = Log::ALL[log];
                let unsettled = rig.waiting(log);
                let mut kept = Vec::new();
                for (n, unsettled) in unsettled.into_iter().enumerate() {
                    if n % keep == 0 {
                        kept.push(unsettled.entry);
                    } else {
                        rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
                        model.delivered += 1;
                    }
                }
                model.waiting.insert(log.index(), kept);
            }
            Step::DeadLetter { at } => {
                let Some((log, ticket, entry)) = pick(&mut rig, at) else { continue };
                model.remove(log, &ticket, &mut rig);
                rig.shared.state().settle_as_dead_letter(&ticket, letter(&entry));
                model.letters.push(transaction(&entry));
            }
            Step::Read { log } => drop(rig.read(Log::ALL[log], 0, u64::MAX, 10).unwrap()),
            Step::Tick | Step::Chores => {
                if matches!(step, Step::Chores) {
                    rig.chores();
                }
                rig.tick();
                let rejected = std::mem::take(&mut model.rejected);
                model.letters.extend(rejected);
                saved = model.clone();
                let mut found = letters(&rig);
                let mut expected = model.letters.clone();
                found.sort();
                expected.sort();
                assert_eq!(found, expected);
                assert_eq!(rig.stats().dead_letters, expected.len() as u64);
            }
            Step::Crash => {
                drop(rig);
                rig = Rig::open(dir.path());
                model = saved.clone();
            }
            Step::Reopen => {
                rig.tick();
                let rejected = std::mem::take(&mut model.rejected);
                model.letters.extend(rejected);
                saved = model.clone();
                drop(rig);
                rig = Rig::open(dir.path());
            }
        }
        check(&mut rig, &model);
    }
    // In any case: once everything is settled, all of it is deleted.
    for log in [Log::Quota, Log::Started, Log::Usage, Log::Completed] {
        for unsettled in rig.waiting(log) {
            rig.shared.state().deliver(&unsettled.ticket, Settlement::Delivered);
        }
    }
    rig.tick();
    rig.tick();
    assert_eq!(rig.stats().total_depth(), 0);
    assert_eq!(rig.segments(), 1, "only the newest segment is left");
    assert_eq!(rig.stats().quarantined_segments, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if std::env::var_os("OUTBOX_TESTS").is_some() { 300 } else { 16 }, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_a_list_in_memory(steps in proptest::collection::vec(step(), 1..40)) {
        run(steps);
    }
}
