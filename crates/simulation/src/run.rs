//! One run: a world, and the agent's lives in it, one after another.

mod surroundings;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane_agent::outbox::simulated::{Crash, Died, Disk};
use dataplane_agent::time::simulate;

use crate::agent::{Ending, Life};
use crate::bugs::Bug;
use crate::disk::Weather;
use crate::oracle::{Seen, may_wait, what_is_left};
use crate::plan::{End, PATIENCE, Plan, What, When};
use crate::world::{Polls, World};
use surroundings::{produce, strike};

/// Interval of scrapes.
const SCRAPE: Duration = Duration::from_millis(997);
/// After this time a record that the ControlPlane fails on need not be waited for.
const LATE: Duration = Duration::from_secs(300);
/// Dead letters read at once: more than a run has.
const LETTERS: usize = 10_000;
/// Retry interval of opening the outbox.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The violated invariants.
    pub violations: Vec<String>,
    /// The log's hash and length.
    pub digest: (u64, u64),
    /// The duration in virtual time.
    pub lasted: Duration,
    /// Records that were pushed.
    pub records: usize,
    /// Lives of the agent.
    pub lives: u64,
}

/// Executes a plan.
pub fn run(plan: Plan, bug: Option<Bug>, is_printed: bool) -> Outcome {
    let place = Path::new("/dev/shm");
    let place = if place.is_dir() { place.to_path_buf() } else { std::env::temp_dir() };
    let dir =
        tempfile::Builder::new().prefix("simulation-").tempdir_in(place).expect("a folder for the outbox");
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
    if is_printed {
        tell();
    }
    let outcome = runtime.block_on(async {
        let world = World::new(plan, bug, is_printed);
        simulate(Some(Box::new(world.clone())));
        let disk = Disk::new(Box::new(Weather(world.clone())));
        Disk::use_here(Some(disk.clone()));
        let mut play =
            Play { world: world.clone(), disk, dir: dir.path().join("outbox"), seen: Seen::default() };
        play.run().await;
        let state = world.state();
        Outcome {
            violations: state.violations.clone(),
            digest: state.log.digest(),
            lasted: state.now(),
            records: state.pushed,
            lives: state.life + 1,
        }
    });
    drop(runtime);
    Disk::use_here(None);
    simulate(None);
    outcome
}

struct Play {
    world: World,
    disk: Disk,
    dir: PathBuf,
    seen: Seen,
}

/// How to continue after a life.
enum After {
    /// The run is complete.
    Well,
    /// Another life starts after this time.
    Again(Duration),
    /// The run must be abandoned.
    Over,
}

impl Play {
    async fn run(&mut self) {
        let plan = Arc::clone(&self.world.state().plan);
        tokio::spawn(produce(self.world.clone()));
        tokio::spawn(strike(self.world.clone()));
        let mut ends = plan.ends.iter();
        loop {
            let is_quiet = self.world.state().now() >= plan.quiet_from();
            let end = if is_quiet { None } else { ends.next() };
            match self.life(&plan, end).await {
                After::Well | After::Over => return,
                After::Again(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    /// Opens the outbox and starts the agent, retrying until both succeed.
    async fn begin(&mut self, plan: &Plan, end: Option<&End>) -> Option<Life> {
        let until = plan.quiet_from().max(self.world.state().now()) + PATIENCE;
        loop {
            // A new process starts watching the clocks afresh.
            simulate(Some(Box::new(self.world.clone())));
            let begun = {
                let world = self.world.clone();
                let (dir, settings) = (&self.dir, &plan.settings);
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Life::begin(&world, dir, settings)))
            };
            match begun {
                Ok(Ok(life)) => return Some(life),
                Ok(Err(error)) => {
                    self.world
                        .state()
                        .note(&format!("the outbox cannot be opened: {}", of_place(&error, &self.dir)));
                    if self.world.state().now() > until {
                        let text = format!("the outbox cannot be opened: {}", of_place(&error, &self.dir));
                        self.world.state().violation(text);
                        return None;
                    }
                    self.disk.crash(Crash::Kill);
                }
                Err(panic) if panic.is::<Died>() => {
                    let how = end.and_then(|end| end.how).unwrap_or(Crash::Kill);
                    self.world.state().note(&format!("died while it started: {how:?}"));
                    self.disk.crash(how);
                    self.world.state().dies_at = None;
                }
                Err(_) => {
                    self.world.state().violation("the agent panicked while it started".into());
                    return None;
                }
            }
            tokio::time::sleep(OPEN_AGAIN).await;
        }
    }

    async fn life(&mut self, plan: &Plan, end: Option<&End>) -> After {
        {
            let mut state = self.world.state();
            state.steps = 0;
            state.dies_at = match end.map(|end| end.when) {
                Some(When::Step(step, behind)) => Some((step, behind)),
                _ => None,
            };
            state.dies_after = match end.map(|end| end.when) {
                Some(When::PollsAfterStep(step, polls)) => Some((step, polls)),
                _ => None,
            };
            state.polls = Polls::default();
            let life = state.ends.len() as u64;
            state.life = life;
            state.note(&format!("life {life} begins"));
        }
        let Some(mut life) = self.begin(plan, end).await else { return After::Over };
        if let Some(When::Polls(polls)) = end.map(|end| end.when) {
            self.world.state().polls.dies_at = Some(polls);
        }
        let begun = self.world.state().now();
        self.world.state().begun = begun;
        let deadline = plan.quiet_from().max(begun) + PATIENCE;
        let ends_at = match end.map(|end| end.when) {
            Some(When::After(time)) => Some(begun + time),
            _ => None,
        };
        loop {
            let now = self.world.state().now();
            let is_quiet = now >= plan.quiet_from();
            if is_quiet {
                let mut state = self.world.state();
                (state.dies_at, state.dies_after, state.polls.dies_at) = (None, None, None);
            }
            let slice = ends_at.map_or(SCRAPE, |at| at.saturating_sub(now).min(SCRAPE));
            if let Some(ending) = life.live(slice).await {
                return self.ended(life, &ending, end);
            }
            if ends_at.is_some_and(|at| self.world.state().now() >= at) {
                return self.end_as_planned(life, end).await;
            }
            if let Err(ending) = self.look(&mut life).await {
                return self.ended(life, &ending, end);
            }
            if !self.world.state().violations.is_empty() {
                return After::Over;
            }
            let stats = life.outbox.stats();
            let (undone, waiting) = {
                let state = self.world.state();
                let is_late = state.now() > plan.quiet_from().max(begun) + LATE;
                let undone = if is_quiet { self.seen.undone(&state) } else { Vec::new() };
                let (waiting, undone): (Vec<_>, Vec<_>) =
                    undone.into_iter().partition(|number| is_late && may_wait(&state, *number));
                let waiting = waiting.len() + if is_late { self.seen.replayed(&state) } else { 0 };
                (undone, waiting as u64)
            };
            let left = what_is_left(&self.world.state(), &stats, waiting);
            let unmirrored = plan.settings.mirror_most > 0 && !life.outbox.unmirrored().is_empty();
            // A replayed record may need another refusal, which needs other records to succeed.
            if is_quiet && undone.is_empty() && (left.is_none() || !plan.has_replays()) {
                self.world.state().is_over = true;
            }
            match left {
                None if is_quiet && undone.is_empty() && !unmirrored => return self.well(life, plan).await,
                left if self.world.state().now() > deadline => {
                    let left = left.unwrap_or_else(|| "dead letters that are not mirrored".into());
                    let name = |number: &usize| self.world.state().records[*number].transaction.clone();
                    let undone: Vec<String> = undone.iter().take(3).map(name).collect();
                    let left = format!("{left}, undone: {undone:?}");
                    let why = life.trouble();
                    self.world.state().violation(format!("not all is well in time: {left}; {why}"));
                    return After::Over;
                }
                _ => {}
            }
        }
    }

    /// Takes a scrape and plays the operator.
    async fn look(&mut self, life: &mut Life) -> Result<(), Ending> {
        let faults: Vec<What> = self.world.state().faults().collect();
        let is_paused = life.controls.orders().paused;
        let plan = Arc::clone(&self.world.state().plan);
        // Otherwise only commands pause it.
        let pauses = plan.faults.iter().any(|fault| fault.what == What::Paused);
        match faults.contains(&What::Paused) {
            true if !is_paused => life.controls.pause(),
            false if is_paused && pauses => {
                self.hurry();
                life.controls.resume();
            }
            _ => {}
        }
        if faults.contains(&What::Probed) {
            self.hurry();
            life.controls.probe();
        }
        if faults.contains(&What::BrakeReleased) {
            self.hurry();
            life.controls.release_brake();
        }
        self.seen.stats(&self.world, &life.outbox.stats(), &life.outbox.durable_stats());
        if life.outbox.stats().dead_letters > 0 || plan.has_replays() {
            let (outbox, from) = (life.outbox.clone(), self.seen.next_letter(&plan));
            let letters = life.do_beside(async move { outbox.dead_letters(from, LETTERS).await }).await?;
            if let Some(Ok(letters)) = letters {
                self.seen.letters(&self.world, letters, false);
            }
        }
        Ok(())
    }

    /// Notes an operator's order to send now, which overrides delays that the ControlPlane asked for.
    fn hurry(&self) {
        let mut state = self.world.state();
        state.hurried_at = state.now();
    }

    /// Handles a life that has ended by itself.
    fn ended(&mut self, life: Life, ending: &Ending, end: Option<&End>) -> After {
        drop(life);
        let how = end.and_then(|end| end.how).unwrap_or(Crash::Kill);
        if let Ending::Failed(why) = ending {
            self.world.state().violation(why.clone());
            return After::Over;
        }
        self.crashed(how);
        After::Again(end.map_or(OPEN_AGAIN, |end| end.restart_after))
    }

    fn crashed(&mut self, how: Crash) {
        self.disk.crash(how);
        let mut state = self.world.state();
        let now = state.now();
        state.note(&format!("ends by {how:?}"));
        state.ends.push((now, false));
    }

    async fn end_as_planned(&mut self, life: Life, end: Option<&End>) -> After {
        let pause = end.map_or(OPEN_AGAIN, |end| end.restart_after);
        match end.and_then(|end| end.how) {
            Some(how) => {
                drop(life);
                self.crashed(how);
            }
            None => match life.stop().await {
                Ok(flushed) => {
                    self.disk.crash(Crash::Kill);
                    let mut state = self.world.state();
                    let now = state.now();
                    state.note(&format!("stopped, flushed {flushed}"));
                    state.ends.push((now, flushed));
                }
                Err(Ending::Failed(why)) => {
                    self.world.state().violation(why);
                    return After::Over;
                }
                Err(Ending::Died) => self.crashed(Crash::Kill),
            },
        }
        After::Again(pause)
    }

    /// Completes the run: stops the agent, checks once more, and settles the account.
    async fn well(&mut self, mut life: Life, plan: &Plan) -> After {
        if self.look(&mut life).await.is_err() {
            self.world.state().violation("it died for no reason".into());
            return After::Over;
        }
        if life.stop().await.is_err() {
            self.world.state().violation("it did not stop in order".into());
            return After::Over;
        }
        // Everything settled is on disk, even if power is cut now.
        self.disk.crash(Crash::Power);
        let now = self.world.state().now();
        self.world.state().ends.push((now, true));
        let Some(mut life) = self.begin(plan, None).await else { return After::Over };
        let outbox = life.outbox.clone();
        let mut from = 0;
        let mut letters = Vec::new();
        loop {
            let outbox = outbox.clone();
            let page = life.do_beside(async move { outbox.dead_letters(from, 1000).await }).await;
            match page {
                Ok(Some(Ok(page))) if page.is_empty() => break,
                Ok(Some(Ok(page))) => {
                    from = page.last().map_or(from, |letter| letter.id + 1);
                    letters.extend(page);
                }
                _ => {
                    self.world.state().violation("dead letters cannot be read".into());
                    return After::Over;
                }
            }
        }
        self.seen.stats(&self.world, &outbox.stats(), &outbox.durable_stats());
        self.seen.letters(&self.world, letters, true);
        let orders = outbox.clone();
        let Ok(Some(Ok(orders))) = life.do_beside(async move { orders.orders().await }).await else {
            self.world.state().violation("audit lines cannot be read".into());
            return After::Over;
        };
        let audited: Vec<String> = orders.into_iter().map(|(_, note)| note.who).collect();
        self.world.state().check_commands(&audited);
        self.seen.end(&self.world, &outbox.stats());
        After::Well
    }
}

/// The error without the folder's name, which differs between runs.
fn of_place(error: &dyn std::fmt::Display, dir: &Path) -> String {
    error.to_string().replace(&*dir.to_string_lossy(), "OUTBOX")
}

/// Prints the agent's log, from warnings on.
fn tell() {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).without_time().with_ansi(false);
    // A second run in the same process uses the first one's log.
    let _ = log.try_init();
}
