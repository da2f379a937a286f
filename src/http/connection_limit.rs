//! Places for connections, so many at a time. When all are taken, the one that has waited longest for its peer (to send
//! a request or the rest of its body, or to take an answer) gives its place to whoever knocks: ten thousand that say nothing
//! keep nobody out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// All places of one listener. Whoever accepts its connections takes them, one after the other.
pub(super) struct ConnectionLimit {
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
pub(super) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    leave: Arc<Notify>,
    /// A request has come and its answer has not gone.
    answering: AtomicBool,
    /// The answer cannot go on because the peer takes nothing.
    stalled: AtomicBool,
    /// The request cannot be answered because the peer does not send the rest of its body.
    starved: AtomicBool,
    /// The number of its wait; 0 while there is something to do.
    wait: AtomicU64,
}

impl ConnectionLimit {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is counted here is right after each line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, when there is one. Waits only while every connection is being answered.
    pub(super) async fn take(self: &Arc<Self>) -> ConnectionPermit {
        loop {
            if let Some(permit) = self.try_take() {
                return permit;
            }
            self.changed.notified().await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let mut state = self.state();
        if state.taken < self.most {
            state.taken += 1;
            drop(state);
            let permit = ConnectionPermit {
                limit: Arc::clone(self),
                leave: Arc::default(),
                answering: AtomicBool::new(false),
                stalled: AtomicBool::new(false),
                starved: AtomicBool::new(false),
                wait: AtomicU64::new(0),
            };
            permit.settle();
            return Some(permit);
        }
        // One place is needed: one leaves.
        state.make_room();
        None
    }

    /// Has the connection that has waited longest leave, for its descriptor. Done when one has left, or none waits.
    pub(super) async fn make_room(&self) {
        if !self.state().make_room() {
            return;
        }
        while self.state().leaving > 0 {
            self.changed.notified().await;
        }
    }
}

impl State {
    /// Tells one to leave, unless one does already. Whether there is one.
    fn make_room(&mut self) -> bool {
        if self.leaving == 0
            && let Some((_, leave)) = self.waiting.pop_first()
        {
            self.leaving += 1;
            leave.notify_one();
        }
        self.leaving > 0
    }
}

impl ConnectionPermit {
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

    /// The peer does not send the rest of its request, or does again.
    pub(super) fn starved(&self, starved: bool) {
        if self.starved.swap(starved, Ordering::Relaxed) != starved {
            self.settle();
        }
    }

    /// Whoever waits for the peer is in the queue of those who may be told to leave; whoever works is not.
    fn settle(&self) {
        let is_held_up = self.stalled.load(Ordering::Relaxed) || self.starved.load(Ordering::Relaxed);
        let works = self.answering.load(Ordering::Relaxed) && !is_held_up;
        let wait = self.wait.load(Ordering::Relaxed);
        if works == (wait == 0) {
            return;
        }
        let mut state = self.limit.state();
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
        self.limit.changed.notify_one();
    }

    /// Done when somebody else needs the place.
    pub(super) async fn wanted(&self) {
        self.leave.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        state.taken -= 1;
        let wait = self.wait.load(Ordering::Relaxed);
        if wait != 0 && state.waiting.remove(&wait).is_none() {
            state.leaving -= 1;
        }
        drop(state);
        self.limit.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_wanted(permit: &ConnectionPermit) -> bool {
        permit.wanted().now_or_never().is_some()
    }

    #[test]
    fn only_the_connection_waiting_longest_makes_room() {
        let limit = ConnectionLimit::new(3);
        let take = || limit.take().now_or_never();
        let (a, b, c) = (take().unwrap(), take().unwrap(), take().unwrap());
        // The first has had a request since, and waits again: it is the last in the queue now.
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
    fn a_connection_being_answered_is_kept() {
        let limit = ConnectionLimit::new(1);
        let permit = limit.take().now_or_never().expect("a place");
        permit.answering(true);
        let mut next = Box::pin(limit.take());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(!is_wanted(&permit));
        permit.answering(false);
        assert!(next.as_mut().now_or_never().is_none());
        assert!(is_wanted(&permit), "it has its answer");
        drop(permit);
        assert!(next.now_or_never().is_some());
    }

    #[test]
    fn a_peer_that_reads_nothing_makes_room() {
        let limit = ConnectionLimit::new(1);
        let permit = limit.take().now_or_never().expect("a place");
        permit.answering(true);
        permit.stalled(true);
        permit.stalled(false);
        assert!(limit.take().now_or_never().is_none() && !is_wanted(&permit), "it takes it again");
        permit.stalled(true);
        permit.answering(false);
        permit.stalled(false);
        assert!(limit.take().now_or_never().is_none() && is_wanted(&permit), "it was answered");
    }

    #[test]
    fn a_peer_that_stalls_its_request_makes_room() {
        let limit = ConnectionLimit::new(2);
        let take = || limit.take().now_or_never();
        let (slow, busy) = (take().expect("a place"), take().expect("a place"));
        slow.answering(true);
        busy.answering(true);
        slow.starved(true);
        assert!(take().is_none() && is_wanted(&slow) && !is_wanted(&busy));
        drop(slow);
        let trickling = take().expect("a place");
        trickling.answering(true);
        trickling.starved(true);
        trickling.starved(false);
        assert!(take().is_none() && !is_wanted(&trickling) && !is_wanted(&busy), "all of it has come");
    }

    #[test]
    fn room_can_be_made_while_places_are_free() {
        let limit = ConnectionLimit::new(9);
        let (first, second) = (limit.take().now_or_never().unwrap(), limit.take().now_or_never().unwrap());
        let mut room = Box::pin(limit.make_room());
        assert!(room.as_mut().now_or_never().is_none());
        assert!(is_wanted(&first) && !is_wanted(&second));
        drop(first);
        assert!(room.now_or_never().is_some());
        second.answering(true);
        assert!(limit.make_room().now_or_never().is_some(), "nobody waits");
    }

    #[test]
    fn a_connection_told_to_close_closes_even_if_a_request_arrives() {
        let limit = ConnectionLimit::new(1);
        let permit = limit.take().now_or_never().expect("a place");
        assert!(limit.take().now_or_never().is_none());
        permit.answering(true);
        permit.answering(false);
        assert!(is_wanted(&permit));
        drop(permit);
        assert!(limit.take().now_or_never().is_some(), "and its place is free");
        assert_eq!(limit.state().leaving, 0);
    }
}
