//! A connection on loan to one request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Request;
use tokio::time::Instant;

use super::{Idle, Pool};
use crate::control_plane::failure::Failure;
use crate::control_plane::transport::connection::{ConnectionParts, ExchangeError, Heeded, Http1, Http2};
use crate::control_plane::transport::exchange::Upload;
use crate::control_plane::transport::socket::TcpConnection;

/// After an answer that does not name its request, a connection rests: data that still arrives belongs to that request.
const REST: Duration = Duration::from_millis(5);

/// A connection for one request. It is closed unless it is returned.
pub(in crate::control_plane) struct Checkout {
    connection: Option<PooledConnection>,
    pool: Arc<Pool>,
    is_fresh: bool,
    is_probe: bool,
    is_reusable: bool,
    is_urgent: bool,
}

/// A connection of either protocol.
pub(super) enum PooledConnection {
    Http1(Http1),
    Http2(Arc<Http2>),
}

impl PooledConnection {
    fn parts(&self) -> &ConnectionParts {
        match self {
            Self::Http1(connection) => &connection.parts,
            Self::Http2(connection) => &connection.parts,
        }
    }
}

impl Checkout {
    pub(super) fn new(
        pool: &Arc<Pool>,
        connection: PooledConnection,
        is_fresh: bool,
        is_probe: bool,
    ) -> Self {
        let (connection, pool) = (Some(connection), Arc::clone(pool));
        Self { connection, pool, is_fresh, is_probe, is_reusable: false, is_urgent: false }
    }

    /// Whether the connection has served other requests before.
    pub(in crate::control_plane::transport) fn is_used(&self) -> bool {
        !self.is_fresh
    }

    pub(in crate::control_plane::transport) fn tcp(&self) -> Option<&Arc<TcpConnection>> {
        self.connection.as_ref().map(|connection| &connection.parts().tcp)
    }

    pub(in crate::control_plane::transport) fn is_http2(&self) -> bool {
        matches!(self.connection, Some(PooledConnection::Http2(_)))
    }

    pub(in crate::control_plane::transport) async fn exchange(
        &mut self,
        request: Request<Upload>,
        max: usize,
        patience: Duration,
        is_urgent: bool,
    ) -> Result<Heeded, ExchangeError> {
        let heeded = match &mut self.connection {
            Some(PooledConnection::Http1(connection)) => {
                connection.parts.tcp.set_urgent(is_urgent);
                connection.exchange(request, max, patience).await?
            }
            Some(PooledConnection::Http2(connection)) => connection.exchange(request, max, patience).await?,
            None => {
                return Err(ExchangeError {
                    failure: Failure::Cut("closed".to_owned()),
                    is_unanswered: true,
                });
            }
        };
        (self.is_reusable, self.is_urgent) = (heeded.is_reusable, is_urgent);
        Ok(heeded)
    }

    /// Returns the connection for the next request. `is_named`: the answer names its request; `is_served`: the answer is a
    /// good one.
    pub(in crate::control_plane) fn give_back(mut self, is_named: bool, is_served: bool) {
        let Some(connection) = self.connection.take() else { return };
        let mut state = self.pool.lock();
        let now = Instant::now();
        if !is_served {
            state.is_sour = true;
        } else if self.is_probe && std::mem::take(&mut state.is_sour) {
            state.renewed_at = Some(connection.parts().opened_at);
        }
        match connection {
            PooledConnection::Http1(connection) => {
                let is_kept = self.is_reusable
                    && state.idle.iter().filter(|idle| idle.is_urgent == self.is_urgent).count()
                        < self.pool.most
                    && !self.pool.suspicion.is_roused()
                    && state.renewed_at.is_none_or(|at| connection.parts.opened_at >= at);
                if is_kept {
                    let rests_until = if is_named { now } else { now + REST };
                    state.idle.push(Idle { connection, since: now, rests_until, is_urgent: self.is_urgent });
                } else {
                    state.open -= 1;
                }
            }
            PooledConnection::Http2(connection) => {
                connection.streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Closes a connection that is not at fault, so that the next request uses another one.
    pub(in crate::control_plane) fn close(mut self) {
        self.close_connection();
    }

    fn close_connection(&mut self) -> bool {
        let Some(connection) = self.connection.take() else { return false };
        match connection {
            PooledConnection::Http1(_) => self.pool.lock().open -= 1,
            // Requests in flight on it are finished.
            PooledConnection::Http2(connection) => {
                connection.retire();
                connection.streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
        true
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if self.close_connection() {
            self.pool.lock().is_sour = true;
        }
    }
}
