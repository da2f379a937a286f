//! Whether a host, or something in between, sends unrequested data.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After unrequested data arrived, every connection serves only one request, for this long.
const SUSPICIOUS_FOR: Duration = Duration::from_mins(10);

/// Whether this host, or something in between, sends unrequested data.
#[derive(Default)]
pub(super) struct Suspicion {
    until: Mutex<Option<Instant>>,
}

impl Suspicion {
    pub(super) fn rouse(&self) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = until.is_none_or(|until| until < Instant::now());
        *until = Some(Instant::now() + SUSPICIOUS_FOR);
        drop(until);
        if is_new {
            tracing::warn!(
                "unrequested answers arrive on connections to the ControlPlane (check proxies); each connection is used for one request for a while"
            );
        }
    }

    pub(super) fn is_roused(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}
