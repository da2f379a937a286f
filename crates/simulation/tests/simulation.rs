//! Goal: 300 seeds hold, a seed replays to the byte, and every planted bug is found. Method: runs, in their own time.

use clap::ValueEnum;
use simulation::bugs::Bug;
use simulation::plan::Plan;
use simulation::run::run;

/// Seeds within which each planted bug must be found.
const FOUND_WITHIN: u64 = 200;

fn quiet() {
    // The run reports panics.
    std::panic::set_hook(Box::new(|_| {}));
}

#[test]
fn three_hundred_seeds_hold() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let hold = |first: usize| {
        for seed in (1..=300).skip(first).step_by(threads) {
            let outcome = run(Plan::of(seed), None, false);
            // `quiet` may have suppressed the text of the assertion.
            if !outcome.violations.is_empty() {
                eprintln!("error: seed {seed}: {:?}", outcome.violations);
            }
            assert!(outcome.violations.is_empty());
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|first| drop(scope.spawn(move || hold(first)))));
}

#[test]
fn a_seed_replays_to_the_byte() {
    for seed in [3, 14, 159, 265, 358, 979] {
        let (once, again) = (run(Plan::of(seed), None, false), run(Plan::of(seed), None, false));
        assert_eq!(once, again, "seed {seed}");
    }
    assert_ne!(run(Plan::of(1), None, false).digest, run(Plan::of(2), None, false).digest);
}

#[test]
fn every_planted_bug_is_found() {
    quiet();
    let mut missed = Vec::new();
    for bug in Bug::value_variants() {
        let found =
            (1..=FOUND_WITHIN).find(|seed| !run(Plan::of(*seed), Some(*bug), false).violations.is_empty());
        match found {
            Some(seed) => println!("{bug:?} is found by seed {seed}"),
            None => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not found within {FOUND_WITHIN} seeds: {missed:?}");
}
