//! What must hold of commands: when their results are reported, when records are sent, and at the end.

use super::plan::{Action, Proof};
use super::{CLOCK_ERROR, CommandReport, Limit, NEEDS_RESTART, id};
use crate::plan::What;
use crate::world::State;

impl State {
    /// Notes what a successful command changed, unless another one may have undone it.
    pub(super) fn took_effect(&mut self, number: usize, life: u64) {
        let since = self.now();
        let action = self.plan.commands[number].action;
        // A command that was handed out with it or later may have been executed already.
        let handed_out = self.commands.issued[number].handed_out;
        let undoes = |other: &Action| match action {
            Action::Pause => *other == Action::Resume,
            _ => matches!(other, Action::SetRateLimit(..)),
        };
        let mut others = self.plan.commands.iter().zip(&self.commands.issued).enumerate();
        let is_undone = others.any(|(n, (planned, given))| {
            n != number
                && undoes(&planned.action)
                && given.handed_out.is_some()
                && (given.handed_out >= handed_out || given.report.is_none())
        });
        match action {
            Action::Resume => self.hurried_at = since,
            Action::Pause if !is_undone => self.commands.paused = Some(life),
            Action::SetRateLimit(per_second, burst) if !is_undone => {
                self.commands.limit = Some(Limit { life, since, per_second, burst, sent: 0 });
            }
            _ => {}
        }
    }

    /// Checks a command's result.
    pub(super) fn check_report(&mut self, number: usize, report: &CommandReport) {
        let planned = self.plan.commands[number].clone();
        let given = self.commands.issued[number].clone();
        let name = format!("{} ({:?}, {:?})", id(number), planned.action, planned.proof);
        let error = report.error.clone().unwrap_or_default();
        let is_late = self.unix_seconds() + CLOCK_ERROR.as_secs() >= given.expires;
        let is_refused = !report.success && error.starts_with("refused: ");
        if planned.proof != Proof::Good && !is_refused {
            self.violation(format!("{name} was not refused: {} {error}", report.success));
        } else if planned.proof == Proof::Good && is_refused && !(is_late && error.contains("expired")) {
            self.violation(format!("{name} was refused: {error}"));
        } else if planned.proof == Proof::Good && planned.action.is_sure() && !report.success && !is_refused {
            // The outcome is unknown only after a crash.
            let is_excused = self.has_died() && error.starts_with("interrupted");
            if !is_excused {
                self.violation(format!("{name} failed: {error}"));
            }
        } else if planned.action == Action::Unknown && report.success {
            self.violation(format!("{name} cannot have been done"));
        }
        if planned.action == Action::Reload
            && report.success
            && report.result["need_restart"][0] != NEEDS_RESTART
        {
            self.violation(format!("{name} says {}", report.result));
        }
        if planned.action == Action::HealthCheck
            && report.success
            && !report.result["outbox"]["depth"].is_u64()
        {
            self.violation(format!("{name} says {}", report.result));
        }
        // A result is durable before it is reported, unless the disk fails, and is not forgotten too soon.
        // An interrupted command's time is that of each restart until its result is accepted.
        let (mut before, mut after) = (given.report.clone(), report.clone());
        if error.starts_with("interrupted") {
            before.iter_mut().chain([&mut after]).for_each(|report| report.timestamp.clear());
        }
        let is_same = before.is_none_or(|before| before == after);
        let ttl = self.plan.settings.command_cache_ttl;
        let may_be_forgotten = given.handed_out.is_some_and(|at| at + ttl < self.now() + CLOCK_ERROR);
        let is_protected = planned.action.is_change() && planned.proof == Proof::Good && !is_late;
        if !is_same && (!may_be_forgotten || is_protected) && !self.has_failing_disk() {
            self.violation(format!("{name} has another result than before: {report:?}, {:?}", given.report));
        }
    }

    /// Records that replays have appended; `None` if an interrupted one may have appended some.
    pub fn replayed(&self) -> Option<u64> {
        let mut records = 0;
        for (planned, given) in self.plan.commands.iter().zip(&self.commands.issued) {
            if planned.action == Action::Replay && planned.proof == Proof::Good && given.handed_out.is_some()
            {
                records +=
                    given.report.as_ref().filter(|report| report.success)?.result["replayed"].as_u64()?;
            }
        }
        Some(records)
    }

    fn has_failing_disk(&self) -> bool {
        let mut faults = self.plan.faults.iter();
        faults.any(|fault| {
            matches!(
                fault.what,
                What::WritesFail(..) | What::SyncsFail(_) | What::NamesFail(_) | What::DiskSlow(_)
            )
        })
    }

    /// Whether an order to resume may have been executed and is not reported.
    fn is_resuming(&self) -> bool {
        let mut given = self.plan.commands.iter().zip(&self.commands.issued);
        given.any(|(planned, given)| {
            planned.action == Action::Resume && given.handed_out.is_some() && given.report.is_none()
        })
    }

    /// Checks a request against the pause and the rate limit that commands have set.
    pub fn check_commanded(&mut self, is_record: bool) {
        let (life, now) = (self.life, self.now());
        if self.is_resuming() {
            // It probes at once, even during a `Retry-After`.
            self.hurried_at = now;
        }
        if !is_record {
            return;
        }
        if self.commands.paused == Some(life) {
            self.violation("records are sent while a command has paused the drain".into());
        }
        let Some(limit) = self.commands.limit.as_mut().filter(|limit| limit.life == life) else { return };
        limit.sent += 1;
        let burst = if limit.burst == 0 { limit.per_second.div_ceil(10) } else { limit.burst };
        let passed = now.checked_sub(limit.since).unwrap_or_default().as_secs_f64();
        let most = f64::from(burst) + f64::from(limit.per_second) * passed + 1.0;
        if limit.sent as f64 > most {
            let limit = *limit;
            self.violation(format!("more requests than a command allows: {limit:?} in {passed:.3} s"));
        }
    }

    /// The number of commands without a result.
    pub fn unreported_commands(&self) -> usize {
        self.commands.issued.iter().filter(|given| given.report.is_none()).count()
    }

    /// Checks at the end of a run that each command was executed at most once. `audited` has the actor of each audit line.
    pub fn check_commands(&mut self, audited: &[String]) {
        let mut wrong = Vec::new();
        let (mut done, mut interrupted) = (0, 0);
        for (number, planned) in self.plan.commands.iter().enumerate() {
            let Some(report) = &self.commands.issued[number].report else { continue };
            let is_interrupted = report.error.as_ref().is_some_and(|error| error.starts_with("interrupted"));
            let who = format!("command {}", id(number));
            let lines = audited.iter().filter(|line| **line == who).count();
            let is_traced = lines > 0 || self.has_died() || self.has_failing_disk();
            let is_right = match planned.action {
                // A replay has a line per page.
                Action::Replay if planned.proof == Proof::Good => true,
                action if action.is_change() && (report.success || is_interrupted) => lines <= 1 && is_traced,
                _ => lines == 0,
            };
            if !is_right {
                wrong.push(format!("{who} ({:?}) has {lines} audit lines: {report:?}", planned.action));
            }
            if planned.action == Action::Reload {
                done += usize::from(report.success);
                interrupted += usize::from(is_interrupted);
            }
        }
        let reloads = self.commands.reloads;
        if reloads < done || reloads > done + interrupted {
            wrong.push(format!(
                "{done} reloads were done, {interrupted} interrupted, and there were {reloads}"
            ));
        }
        for text in wrong {
            self.violation(text);
        }
    }
}
