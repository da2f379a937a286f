//! Shrinks a failing plan: fewer faults, ends and records, as long as it still fails.

use std::collections::BTreeSet;

use crate::bugs::Bug;
use crate::plan::Plan;
use crate::run::run;

/// The omitted parts of a seed's plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// Numbers of faults.
    pub faults: BTreeSet<usize>,
    /// Numbers of ends.
    pub ends: BTreeSet<usize>,
    /// Numbers of sessions.
    pub sessions: BTreeSet<usize>,
    /// All commands.
    pub commands: bool,
}

impl Without {
    /// The plan without these parts.
    pub fn of(&self, seed: u64) -> Plan {
        let mut plan = Plan::of(seed);
        let mut number = 0;
        plan.faults.retain(|_| {
            number += 1;
            !self.faults.contains(&(number - 1))
        });
        number = 0;
        plan.ends.retain(|_| {
            number += 1;
            !self.ends.contains(&(number - 1))
        });
        plan.pushes.retain(|push| !self.sessions.contains(&push.session));
        if self.commands {
            plan.commands.clear();
        }
        for (number, push) in plan.pushes.iter_mut().enumerate() {
            push.number = number;
        }
        plan
    }

    /// The same as command-line flags.
    pub fn flags(&self) -> String {
        let list = |name: &str, numbers: &BTreeSet<usize>| {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            if numbers.is_empty() {
                String::new()
            } else {
                format!(" --without-{name} {}", numbers.join(","))
            }
        };
        let commands = if self.commands { " --without-commands" } else { "" };
        list("faults", &self.faults)
            + &list("ends", &self.ends)
            + &list("sessions", &self.sessions)
            + commands
    }
}

/// Finds parts of a failing seed's plan without which it still fails.
pub fn shrink(seed: u64, bug: Option<Bug>) -> Without {
    let plan = Plan::of(seed);
    let sessions: BTreeSet<usize> = plan.pushes.iter().map(|push| push.session).collect();
    let fails = |without: &Without| !run(without.of(seed), bug, false).violations.is_empty();
    let mut without = Without { commands: true, ..Without::default() };
    without.commands = fails(&without);
    let mut part: fn(&mut Without) -> &mut BTreeSet<usize> = |without| &mut without.faults;
    for (n, all) in
        [(0..plan.faults.len()).collect(), (0..plan.ends.len()).collect(), sessions].into_iter().enumerate()
    {
        let all: Vec<usize> = BTreeSet::into_iter(all).collect();
        if n == 1 {
            part = |without| &mut without.ends;
        } else if n == 2 {
            part = |without| &mut without.sessions;
        }
        let mut size = all.len();
        while size > 0 {
            for some in all.chunks(size) {
                let mut fewer = without.clone();
                part(&mut fewer).extend(some.iter().copied());
                if fewer != without && fails(&fewer) {
                    without = fewer;
                }
            }
            size /= 2;
        }
    }
    without
}
