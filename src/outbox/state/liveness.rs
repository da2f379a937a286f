//! Whether the outbox's threads make progress: each reports when it has finished its work and waits for requests again.

use tokio::sync::watch;

/// The values carry no meaning: only their changes are watched.
pub(crate) struct Liveness {
    writer: watch::Sender<()>,
    maintenance: watch::Sender<()>,
}

impl Liveness {
    pub(crate) fn new() -> Self {
        Self { writer: watch::Sender::new(()), maintenance: watch::Sender::new(()) }
    }

    /// The writer has taken a turn. A writer that keeps failing on a broken disk takes turns too.
    pub(crate) fn writer_turned(&self) {
        self.writer.send_replace(());
    }

    /// Maintenance has taken a turn.
    pub(crate) fn maintenance_turned(&self) {
        self.maintenance.send_replace(());
    }

    /// Resolves when both have taken a turn since the call.
    pub(crate) fn both(&self) -> impl Future<Output = ()> + use<> {
        let (mut writer, mut maintenance) = (self.writer.subscribe(), self.maintenance.subscribe());
        async move {
            // The senders live as long as the threads, and the caller has a clone of the outbox.
            let _ = tokio::join!(writer.changed(), maintenance.changed());
        }
    }
}
