//! The disk's behaviour, determined by the plan's faults and by chance.

use std::time::Duration;

use dataplane_agent::outbox::simulated::{DiskFaults, DiskOutcome, DiskStep, Pace};

use crate::bugs::Bug;
use crate::plan::What;
use crate::world::World;

/// The error number for a failing medium.
const EIO: i32 = 5;
/// Free space: enough, but too little for a reserve, which would only use memory here.
const FREE: u64 = 12 << 20;
/// Duration of a commit without a fault.
const COMMIT: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

/// Decides the outcome of each step of the disk.
pub struct Weather(pub World);

impl DiskFaults for Weather {
    fn step(&mut self, step: DiskStep) -> DiskOutcome {
        let mut state = self.0.state();
        state.steps += 1;
        let at = state.steps;
        if let Some((dies_at, behind)) = state.dies_at
            && dies_at == at
        {
            state.note(&format!("dies at step {at} of the disk, {step:?}"));
            return if behind { DiskOutcome::DiesBehind } else { DiskOutcome::DiesBefore };
        }
        if let Some((step, polls)) = state.dies_after
            && step == at
        {
            let count = state.polls.count;
            state.polls.dies_at = Some(count + polls);
        }
        let faults: Vec<What> = state.faults().collect();
        for fault in faults {
            let code = match (fault, step) {
                (What::WritesFail(code, likely), DiskStep::Write) if state.disk.happens(likely) => code,
                (What::SyncsFail(likely), DiskStep::Sync) if state.disk.happens(likely) => EIO,
                (What::NamesFail(likely), DiskStep::SyncNames) if state.disk.happens(likely) => EIO,
                _ => continue,
            };
            state.note(&format!("{step:?} fails with {code}"));
            return DiskOutcome::Failed(code);
        }
        DiskOutcome::Done
    }

    fn left(&mut self, batches: usize) -> usize {
        self.0.state().disk.within(0, batches as u64) as usize
    }

    fn undoes(&mut self) -> bool {
        self.0.state().disk.happens(0.5)
    }

    fn free_bytes(&self) -> u64 {
        let is_low = self.0.state().fault(|what| (what == What::DiskLow).then_some(())).is_some();
        if is_low { 1 << 10 } else { FREE }
    }

    fn has_no_barrier(&self) -> bool {
        self.0.state().has(Bug::AcknowledgeBeforeTheBarrier)
    }

    fn forgets_names(&self) -> bool {
        self.0.state().has(Bug::SkipTheDirectorysFsync)
    }

    fn hides_failed_syncs(&self) -> bool {
        self.0.state().has(Bug::ReuseTheLedger)
    }

    fn drops(&mut self, is_ledger: bool, key: &[u8]) -> bool {
        let bug = self.0.state().bug;
        match (bug, is_ledger, key.first()) {
            (Some(Bug::LoseADeadLetter), true, Some(b'd')) => self.0.state().disk.happens(0.2),
            (Some(Bug::ForgetACommand), true, Some(b'm'))
            | (Some(Bug::ForgetTheCheckpoint), false, Some(b'k'))
            | (Some(Bug::ForgetWhatIsSettled), true, Some(b'l' | b'p')) => true,
            _ => false,
        }
    }
}

/// Decides the disk's speed.
pub struct Speed(pub World);

impl Pace for Speed {
    fn next(&self) -> Duration {
        let mut state = self.0.state();
        let slow = state.fault(|what| if let What::DiskSlow(most) = what { Some(most) } else { None });
        let (least, most) = COMMIT;
        let most = slow.unwrap_or(most).max(least);
        state.disk.time(least, most)
    }
}
