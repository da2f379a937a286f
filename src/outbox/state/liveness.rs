//! Whether the outbox's threads get on: each says so whenever it has done what it was told and listens again.

use tokio::sync::watch;

/// Counts nothing: what is watched is that it changes.
pub(crate) struct Turns {
    writer: watch::Sender<()>,
    keeper: watch::Sender<()>,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { writer: watch::Sender::new(()), keeper: watch::Sender::new(()) }
    }

    /// The writer has taken a turn. One that tries in vain to write to a broken disk takes turns too.
    pub(crate) fn of_writer(&self) {
        self.writer.send_replace(());
    }

    /// The keeper has taken a turn.
    pub(crate) fn of_keeper(&self) {
        self.keeper.send_replace(());
    }

    /// Done when both have taken a turn since the call.
    pub(crate) fn both(&self) -> impl Future<Output = ()> + use<> {
        let (mut writer, mut keeper) = (self.writer.subscribe(), self.keeper.subscribe());
        async move {
            // The senders live as long as the threads do: whoever asks has a clone of the outbox.
            let _ = tokio::join!(writer.changed(), keeper.changed());
        }
    }
}
