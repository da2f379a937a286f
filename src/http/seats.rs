//! Places for connections, so many at a time. When all are taken, the one that has waited longest for its peer (to send
//! a request, or to take an answer) gives its place to whoever knocks: ten thousand that say nothing keep nobody out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All places of one listener. Whoever accepts its connections takes them, one after the other.
pub(super) struct Seats {
    most: usize,
    state: Mutex<State>,
    /// A place was left, or a connection has nothing to do.
    changed: Notify,
}

#[derive(Default)]
struct State {
    taken: usize,
    /// How many were told to leave and have not left yet.
    leaving: usize,
    /// Each wait for a request has a number; the lowest has lasted longest.
    waits: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place, until it is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    leave: Arc<Notify>,
    /// A request has come and its answer has not gone.
    answering: AtomicBool,
    /// The answer cannot go on because the peer takes nothing.
    stalled: AtomicBool,
    /// The number of its wait; 0 while there is something to do.
    wait: AtomicU64,
}

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is counted here is right after each line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, when there is one. Waits only while every connection is being answered.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        loop {
            if let Some(seat) = self.try_take() {
                return seat;
            }
            self.changed.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Seat> {
        let mut state = self.state();
        if state.taken < self.most {
            state.taken += 1;
            drop(state);
            let seat = Seat {
                seats: Arc::clone(self),
                leave: Arc::default(),
                answering: AtomicBool::new(false),
                stalled: AtomicBool::new(false),
                wait: AtomicU64::new(0),
            };
            seat.settle();
            return Some(seat);
        }
        // One place is needed: one leaves.
        if state.leaving == 0
            && let Some((_, leave)) = state.waiting.pop_first()
        {
            state.leaving += 1;
            leave.notify_one();
        }
        None
    }
}

impl Seat {
    /// A request is being answered, or not any more.
    pub(super) fn answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
        self.settle();
    }

    /// The peer takes nothing of its answer, or does again.
    pub(super) fn stalled(&self, stalled: bool) {
        if self.stalled.swap(stalled, Ordering::Relaxed) != stalled {
            self.settle();
        }
    }

    /// Whoever waits for the peer is in the row of those who may be told to leave; whoever works is not.
    fn settle(&self) {
        let works = self.answering.load(Ordering::Relaxed) && !self.stalled.load(Ordering::Relaxed);
        let wait = self.wait.load(Ordering::Relaxed);
        if works == (wait == 0) {
            return;
        }
        let mut state = self.seats.state();
        if works {
            // One that was told to leave already keeps its number, by which it is known when it has left.
            if state.waiting.remove(&wait).is_some() {
                self.wait.store(0, Ordering::Relaxed);
            }
            return;
        }
        state.waits += 1;
        self.wait.store(state.waits, Ordering::Relaxed);
        let wait = state.waits;
        state.waiting.insert(wait, Arc::clone(&self.leave));
        drop(state);
        self.seats.changed.notify_one();
    }

    /// Done when somebody else needs the place.
    pub(super) async fn wanted(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.seats.state();
        state.taken -= 1;
        let wait = self.wait.load(Ordering::Relaxed);
        if wait != 0 && state.waiting.remove(&wait).is_none() {
            state.leaving -= 1;
        }
        drop(state);
        self.seats.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_wanted(seat: &Seat) -> bool {
        seat.wanted().now_or_never().is_some()
    }

    #[test]
    fn whoever_has_waited_longest_makes_room_and_nobody_else() {
        let seats = Seats::new(3);
        let take = || seats.take().now_or_never();
        let (a, b, c) = (take().unwrap(), take().unwrap(), take().unwrap());
        // The first has had a request since, and waits again: it is the last in the row now.
        a.answering(true);
        a.answering(false);
        assert!(take().is_none() && take().is_none(), "nobody has left yet");
        assert!(is_wanted(&b) && !is_wanted(&a) && !is_wanted(&c), "asked twice, one leaves");
        drop(b);
        let d = take().expect("a place");
        assert!(take().is_none());
        assert!(is_wanted(&c) && !is_wanted(&a) && !is_wanted(&d));
    }

    #[test]
    fn who_is_being_answered_keeps_the_place() {
        let seats = Seats::new(1);
        let seat = seats.take().now_or_never().expect("a place");
        seat.answering(true);
        let mut next = Box::pin(seats.take());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(!is_wanted(&seat));
        seat.answering(false);
        assert!(next.as_mut().now_or_never().is_none());
        assert!(is_wanted(&seat), "it has its answer");
        drop(seat);
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn whoever_takes_nothing_of_the_answer_makes_room() {
        let seats = Seats::new(1);
        let seat = seats.take().now_or_never().expect("a place");
        seat.answering(true);
        seat.stalled(true);
        seat.stalled(false);
        assert!(seats.take().now_or_never().is_none() && !is_wanted(&seat), "it takes it again");
        seat.stalled(true);
        seat.answering(false);
        seat.stalled(false);
        assert!(seats.take().now_or_never().is_none() && is_wanted(&seat), "it was answered");
    }

    #[test]
    fn one_told_to_leave_leaves_even_if_a_request_comes() {
        let seats = Seats::new(1);
        let seat = seats.take().now_or_never().expect("a place");
        assert!(seats.take().now_or_never().is_none());
        seat.answering(true);
        seat.answering(false);
        assert!(is_wanted(&seat));
        drop(seat);
        assert!(seats.take().now_or_never().is_some(), "and its place is free");
        assert_eq!(seats.state().leaving, 0);
    }
}
