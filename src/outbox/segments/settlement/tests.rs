//! Settlement against a plain set.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Settle(prop::sample::Index),
    Save,
    FailToSave,
    Reopen,
    WriteOff(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => any::<prop::sample::Index>().prop_map(Step::Settle),
        3 => Just(Step::Save),
        1 => Just(Step::FailToSave),
        1 => Just(Step::Reopen),
        1 => any::<prop::sample::Index>().prop_map(Step::WriteOff),
    ];
    proptest::collection::vec(step, 0..400)
}

struct LedgerModel {
    low: u64,
    marks: BTreeMap<u64, Mark>,
}

impl LedgerModel {
    fn save(&mut self, changes: Changes) {
        self.low = changes.low.unwrap_or(self.low);
        for (key, mark) in changes.marks {
            match mark {
                Some(mark) => self.marks.insert(key, mark),
                None => self.marks.remove(&key),
            };
        }
    }
}

proptest! {
    /// Against a plain set: in any order of settling, saving, failed saves and restarts, settled records are known, and
    /// unsettled records never count as settled.
    #[test]
    fn settles_like_a_set(packs in proptest::collection::vec((1u32..=64, 0u64..5), 1..20), steps in steps()) {
        let (mut settled, mut all, mut firsts, mut next) = (Settled::default(), Vec::new(), Vec::new(), 1);
        for (count, gap) in packs {
            next += gap;
            firsts.push((next, count));
            all.extend(next..next + u64::from(count));
            next += u64::from(count);
        }
        let read = |settled: &mut Settled| {
            for (first, count) in &firsts {
                settled.enter(*first, *count, 7);
                settled.advance(first + u64::from(*count));
            }
        };
        read(&mut settled);
        let (mut model, mut saved) = (BTreeSet::new(), BTreeSet::new());
        let mut ledger = LedgerModel { low: 0, marks: BTreeMap::new() };
        for step in steps {
            match step {
                Step::Settle(index) => {
                    let seq = all[index.index(all.len())];
                    prop_assert_eq!(settled.settle(seq), model.insert(seq));
                }
                Step::Save => {
                    ledger.save(settled.take_changes());
                    saved.clone_from(&model);
                }
                Step::FailToSave => {
                    let changes = settled.take_changes();
                    settled.put_back(&changes);
                }
                Step::Reopen => {
                    settled = Settled::restore(ledger.low, ledger.marks.clone());
                    model.clone_from(&saved);
                    for seq in &all {
                        prop_assert_eq!(settled.is_settled(*seq), model.contains(seq));
                    }
                    read(&mut settled);
                }
                Step::WriteOff(index) => {
                    let (first, count) = firsts[index.index(firsts.len())];
                    settled.write_off(first, first + u64::from(count));
                    model.extend(first..first + u64::from(count));
                }
            }
            for seq in &all {
                prop_assert_eq!(settled.is_settled(*seq), model.contains(seq));
                prop_assert!(settled.skip(*seq) == *seq || model.contains(seq));
            }
        }
        if model.len() == all.len() {
            prop_assert!(settled.marks.is_empty(), "nothing is left to remember");
        }
    }

    /// Writing off ahead of reading does not affect earlier records.
    #[test]
    fn a_write_off_ahead_of_reading_settles_nothing_else(ahead in 2u64..20) {
        let mut settled = Settled::restore(1, BTreeMap::new());
        settled.write_off(ahead * 64, ahead * 64 + 64);
        prop_assert!(!settled.is_settled(1));
        prop_assert_eq!(settled.low(), 1);
        for pack in 0..ahead {
            settled.enter((pack * 64).max(1), 1, 0);
            settled.advance(pack * 64 + 64);
            prop_assert!(settled.settle((pack * 64).max(1)));
        }
        prop_assert_eq!(settled.low(), ahead * 64 + 64);
    }
}
