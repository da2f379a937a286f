//! Whose turn it is: priority between the kinds, without starving any.

use super::logs::{COMPLETED, STARTED};

/// After this many quota requests, lifecycle events, or suspects in a row, the next class gets a turn: none starves.
pub(super) const STREAKS: [u32; 3] = [16, 16, 1];

/// The classes in order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PriorityClass {
    Quota,
    Lifecycle,
    Suspects,
    Usage,
}

impl PriorityClass {
    pub(super) const ALL: [Self; 4] = [Self::Quota, Self::Lifecycle, Self::Suspects, Self::Usage];
}

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Turns {
    /// How often in a row each class but the last was next.
    streaks: [u32; STREAKS.len()],
    /// Alternates started and completed events, which share a class.
    completed_next: bool,
}

impl Turns {
    /// The next class, of those that have something to send (`waiting`).
    pub(super) fn next(&mut self, waiting: [bool; PriorityClass::ALL.len()]) -> Option<PriorityClass> {
        for (class, most) in STREAKS.into_iter().enumerate() {
            let streak = &mut self.streaks[class];
            let others_wait = waiting[class + 1..].contains(&true);
            if waiting[class] && (*streak < most || !others_wait) {
                *streak = streak.saturating_add(1);
                return Some(PriorityClass::ALL[class]);
            }
            *streak = 0;
        }
        waiting[STREAKS.len()].then_some(PriorityClass::Usage)
    }

    /// The log of the next lifecycle event: whether started and completed events `may_go`.
    pub(super) fn next_event(&mut self, may_go: [bool; 2]) -> Option<usize> {
        let at = match may_go {
            [true, true] if self.completed_next => COMPLETED,
            [true, _] => STARTED,
            [false, true] => COMPLETED,
            [false, false] => return None,
        };
        self.completed_next = at == STARTED;
        Some(at)
    }
}
