//! Whether the outbox's threads get on: each says so whenever it has done what it was told and listens again.

use tokio::sync::watch;

/// Counts nothing: what is watched is that it changes.
pub(crate) struct Liveness {
    writer: watch::Sender<()>,
    maintenance: watch::Sender<()>,
}

impl Liveness {
    pub(crate) fn new() -> Self {
        Self { writer: watch::Sender::new(()), maintenance: watch::Sender::new(()) }
    }

    /// The writer has taken a turn. One that tries in vain to write to a broken disk takes turns too.
    pub(crate) fn writer_turned(&self) {
        self.writer.send_replace(());
    }

    /// Maintenance has taken a turn.
    pub(crate) fn maintenance_turned(&self) {
        self.maintenance.send_replace(());
    }

    /// Done when both have taken a turn since the call.
    pub(crate) fn both(&self) -> impl Future<Output = ()> + use<> {
        let (mut writer, mut maintenance) = (self.writer.subscribe(), self.maintenance.subscribe());
        async move {
            // The senders live as long as the threads do: whoever asks has a clone of the outbox.
            let _ = tokio::join!(writer.changed(), maintenance.changed());
        }
    }
}
