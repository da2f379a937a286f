//! Limits concurrent connections. When the limit is reached, a new connection displaces the one that has waited longest for
//! its peer (to send a request or the rest of its body, or to read an answer): ten thousand silent connections keep nobody
//! out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The permits of one listener. Its accept loop takes them one at a time.
pub(super) struct ConnectionLimit {
    most: usize,
    state: Mutex<State>,
    /// A permit was released, or a connection became idle.
    changed: Notify,
}

#[derive(Default)]
struct State {
    taken: usize,
    /// Connections that were told to close and have not closed yet.
    leaving: usize,
    /// Numbers the waits; the lowest number has lasted longest.
    waits: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's permit, released on drop.
pub(super) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    leave: Arc<Notify>,
    /// A request is being answered.
    answering: AtomicBool,
    /// The answer is stuck because the peer does not read.
    stalled: AtomicBool,
    /// The request is stuck because the peer does not send the rest of its body.
    starved: AtomicBool,
    /// The number of the current wait; 0 while the connection is busy.
    wait: AtomicU64,
}

impl ConnectionLimit {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default(), changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The counts are consistent after every statement, so a poisoned lock is harmless.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a permit. Waits only while every connection is busy.
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
        // One permit is needed, so one connection closes.
        state.make_room();
        None
    }

    /// Makes the connection that has waited longest close, for its descriptor. Returns when one has closed, or if none waits.
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
    /// Tells a connection to close unless one is closing already. Returns whether one is closing.
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
    /// Sets whether a request is being answered.
    pub(super) fn answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
        self.settle();
    }

    /// Sets whether the peer has stopped reading its answer.
    pub(super) fn stalled(&self, stalled: bool) {
        if self.stalled.swap(stalled, Ordering::Relaxed) != stalled {
            self.settle();
        }
    }

    /// Sets whether the peer has stopped sending its request.
    pub(super) fn starved(&self, starved: bool) {
        if self.starved.swap(starved, Ordering::Relaxed) != starved {
            self.settle();
        }
    }

    /// Queues the connection for displacement while it waits for its peer, and removes it while it is busy.
    fn settle(&self) {
        let is_held_up = self.stalled.load(Ordering::Relaxed) || self.starved.load(Ordering::Relaxed);
        let works = self.answering.load(Ordering::Relaxed) && !is_held_up;
        let wait = self.wait.load(Ordering::Relaxed);
        if works == (wait == 0) {
            return;
        }
        let mut state = self.limit.state();
        if works {
            // A connection told to close keeps its number, which identifies it when it has closed.
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

    /// Resolves when the permit is needed elsewhere.
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
        // The first connection had a request meanwhile and waits again: it is now last in the queue.
        a.answering(true);
        a.answering(false);
        assert!(take().is_none() && take().is_none(), "none has closed yet");
        assert!(is_wanted(&b) && !is_wanted(&a) && !is_wanted(&c), "asked twice, one closes");
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
        assert!(is_wanted(&permit), "it has been answered");
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
        assert!(limit.take().now_or_never().is_none() && !is_wanted(&permit), "it reads again");
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
