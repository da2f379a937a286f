//! Handles the agent's signals from the moment they are registered: a signal that arrives before anybody waits for it is not
//! lost and does not end the process.

use std::convert::Infallible;
use std::io;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Makes a write beyond the file size limit (`ulimit -f`) fail with EFBIG; SIGXFSZ would end the process.
pub(super) fn survive_the_file_size_limit() -> io::Result<()> {
    // The handler stays installed for the life of the process; without a listener it does nothing.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    signal(SignalKind::from_raw(Number::XFSZ.as_raw())).map(drop)
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the first signal.
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

    /// Requests a reload at each signal.
    pub(super) async fn forward(mut self, reload: mpsc::Sender<()>) -> Infallible {
        while self.0.recv().await.is_some() {
            // One pending request is enough.
            let _ = reload.try_send(());
        }
        std::future::pending().await
    }
}
