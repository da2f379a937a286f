//! The signals that the agent answers to, from the moment they are asked for: one that comes before anybody waits
//! for it is not lost, and does not end the process.

use std::convert::Infallible;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Done at the first of them.
    pub(super) async fn told(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// SIGHUP.
pub(super) struct Hangups(Signal);

impl Hangups {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Asks for a reload at each.
    pub(super) async fn forward(mut self, reload: mpsc::Sender<()>) -> Infallible {
        while self.0.recv().await.is_some() {
            // One that waits already is enough.
            let _ = reload.try_send(());
        }
        std::future::pending().await
    }
}
