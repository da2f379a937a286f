//! The open connections, and the choice of one for each request.

mod checkout;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::connect::Connector;
use super::connection::{Http1, Http2, Opened, begin};
use super::suspicion::Suspicion;
use crate::control_plane::failure::Failure;
pub(in crate::control_plane) use checkout::Checkout;
use checkout::PooledConnection;

/// Common load balancers close after 60 s: a shorter time avoids closes during a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Connections that take turns, so that consecutive requests need not wait for a rest.
const ROTATED: usize = 4;

/// Number of connections from which HTTP/2 requests share them: on a single connection, each lost packet would stall all
/// requests.
const HTTP2_CONNECTIONS: usize = 8;
/// Requests that share a connection, unless no more connections may be opened.
const HTTP2_STREAMS: usize = 4;

/// Connections to one host.
pub(super) struct Pool {
    connector: Connector,
    /// Most connections kept, and most that HTTP/2 opens.
    most: usize,
    state: Mutex<State>,
    suspicion: Arc<Suspicion>,
    /// Held while opening a connection that others may share.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// In the order of last use, the latest at the end.
    idle: Vec<Idle>,
    shared: Vec<SharedConnection>,
    /// Whether the host uses HTTP/2, once known.
    is_http2: Option<bool>,
    /// HTTP/1.1 connections, idle or in use, and connections being opened.
    open: usize,
    /// Whether something has failed since the last success of a fresh connection.
    is_sour: bool,
    /// Older connections are no longer used: a fresh one succeeded where they failed.
    renewed_at: Option<Instant>,
}

struct Idle {
    connection: Http1,
    since: Instant,
    rests_until: Instant,
    /// Whether its last request was urgent.
    is_urgent: bool,
}

struct SharedConnection {
    connection: Arc<Http2>,
    used_at: Instant,
}

enum Choice {
    Take(PooledConnection),
    /// All of them rest, and there are enough.
    WaitUntil(Instant),
    Open(OpeningPermit),
}

/// Counts a connection that is being opened.
struct OpeningPermit(Arc<Pool>);

impl Drop for OpeningPermit {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

impl Pool {
    pub(super) fn new(connector: Connector, most: usize) -> Self {
        let state = State { is_http2: connector.is_http2(), ..State::default() };
        Self {
            connector,
            most: most.max(1),
            state: Mutex::new(state),
            suspicion: Arc::default(),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// A free connection, or a new one.
    pub(super) async fn check_out(self: &Arc<Self>, is_urgent: bool) -> Result<Checkout, Failure> {
        let until = Instant::now() + self.connector.timeout();
        loop {
            match self.choose(is_urgent) {
                Choice::Take(connection) => return Ok(Checkout::new(self, connection, false, false)),
                Choice::WaitUntil(rested) => sleep_until(rested).await,
                Choice::Open(place) if !self.lock().may_be_shared() => {
                    return self.open_at(place, is_urgent, false).await;
                }
                // Others may share it: they wait until it is open.
                Choice::Open(place) => {
                    let Ok(turn) = timeout_at(until, self.opening.lock()).await else {
                        return Err(Failure::Timeout { connected: false });
                    };
                    if let Choice::Take(connection) = self.choose(is_urgent) {
                        return Ok(Checkout::new(self, connection, false, false));
                    }
                    let _turn = Some(turn).filter(|_| self.lock().may_be_shared());
                    return self.open_at(place, is_urgent, false).await;
                }
            }
        }
    }

    /// A new connection, to a freshly resolved name.
    pub(super) async fn open(self: &Arc<Self>, is_urgent: bool, is_probe: bool) -> Result<Checkout, Failure> {
        let place = self.place(&mut self.lock());
        self.open_at(place, is_urgent, is_probe).await
    }

    async fn open_at(
        self: &Arc<Self>,
        place: OpeningPermit,
        is_urgent: bool,
        is_probe: bool,
    ) -> Result<Checkout, Failure> {
        let opening = async {
            let connected = self.connector.connect(is_urgent).await?;
            begin(connected, is_urgent, &self.suspicion).await
        };
        let opened = match timeout(self.connector.timeout(), opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::Timeout { connected: false }),
        };
        drop(place);
        let mut state = self.lock();
        let connection = match opened {
            Ok(Opened::Http1(connection)) => {
                state.is_http2 = Some(false);
                state.open += 1;
                PooledConnection::Http1(connection)
            }
            Ok(Opened::Http2(connection)) => {
                state.is_http2 = Some(true);
                let connection = Arc::new(connection);
                connection.streams.fetch_add(1, Ordering::Relaxed);
                let shared =
                    SharedConnection { connection: Arc::clone(&connection), used_at: Instant::now() };
                state.shared.push(shared);
                PooledConnection::Http2(connection)
            }
            Err(failure) => {
                state.is_sour = true;
                return Err(failure);
            }
        };
        drop(state);
        Ok(Checkout::new(self, connection, true, is_probe))
    }

    fn place(self: &Arc<Self>, state: &mut State) -> OpeningPermit {
        state.open += 1;
        OpeningPermit(Arc::clone(self))
    }

    fn choose(self: &Arc<Self>, is_urgent: bool) -> Choice {
        let now = Instant::now();
        let mut state = self.lock();
        state.prune(now);
        if let Some(connection) = state.choose_shared(is_urgent, self.most) {
            return Choice::Take(PooledConnection::Http2(connection));
        }
        while let Some(at) = state.idle_for(is_urgent, now) {
            let idle = state.idle.remove(at);
            if idle.connection.is_ready() {
                return Choice::Take(PooledConnection::Http1(idle.connection));
            }
            state.open -= 1;
        }
        let resting = state.idle.iter().map(|idle| idle.rests_until).filter(|until| *until > now);
        match resting.min() {
            Some(rested) if state.open >= ROTATED.min(self.most) => Choice::WaitUntil(rested),
            _ => Choice::Open(self.place(&mut state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes connections that are closed by the peer, too old, or worse than a fresh one.
    fn prune(&mut self, now: Instant) {
        let renewed_at = self.renewed_at;
        let is_good = |since: Instant, opened_at| {
            now.saturating_duration_since(since) < IDLE_TIMEOUT && renewed_at.is_none_or(|at| opened_at >= at)
        };
        let before = self.idle.len();
        self.idle.retain(|idle| {
            is_good(idle.since, idle.connection.parts.opened_at) && !idle.connection.is_closed()
        });
        self.open -= before - self.idle.len();
        self.shared.retain(|shared| {
            let connection = &shared.connection;
            let is_used = connection.streams.load(Ordering::Relaxed) > 0;
            let since = if is_used { now } else { shared.used_at };
            !connection.is_closed() && is_good(since, connection.parts.opened_at)
        });
    }

    /// The index of an idle connection for the next request. One connection that served an urgent request is reserved for
    /// the next urgent one, which then need not wait for a connection to be opened: that takes a round trip or more.
    fn idle_for(&self, is_urgent: bool, now: Instant) -> Option<usize> {
        let last =
            |urgent| self.idle.iter().rposition(|idle| idle.rests_until <= now && idle.is_urgent == urgent);
        let is_spare = is_urgent || self.idle.iter().filter(|idle| idle.is_urgent).count() > 1;
        last(is_urgent).or_else(|| last(!is_urgent).filter(|_| is_spare))
    }

    /// Whether to wait for a connection that is being opened: the host's protocol is not known yet, or there are enough
    /// connections for requests to share.
    fn may_be_shared(&self) -> bool {
        match self.is_http2 {
            Some(false) => false,
            None => true,
            Some(true) => self.shared.len() + self.open > HTTP2_CONNECTIONS,
        }
    }

    /// Up to a number of connections each request has its own; beyond that, requests share.
    fn choose_shared(&mut self, is_urgent: bool, most: usize) -> Option<Arc<Http2>> {
        // A quota request behind a megabyte of backlog on the same connection would be late.
        let own = self.shared.iter_mut().filter(|shared| shared.connection.is_urgent == is_urgent);
        let (mut count, mut least): (usize, Option<(usize, &mut SharedConnection)>) = (self.open, None);
        for shared in own {
            count += 1;
            let streams = shared.connection.streams.load(Ordering::Relaxed);
            if least.as_ref().is_none_or(|(fewest, _)| streams < *fewest) {
                least = Some((streams, shared));
            }
        }
        let (streams, shared) = least?;
        let is_free = streams == 0;
        let may_share = count >= HTTP2_CONNECTIONS.min(most) && (streams < HTTP2_STREAMS || count >= most);
        if !is_free && !may_share {
            return None;
        }
        shared.connection.streams.fetch_add(1, Ordering::Relaxed);
        shared.used_at = Instant::now();
        Some(Arc::clone(&shared.connection))
    }
}
