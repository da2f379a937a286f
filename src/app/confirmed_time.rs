//! Passes the time from the `ControlPlane`'s answers to the outbox, which deletes dead letters by age.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control_plane::Client;
use crate::outbox::Outbox;
use crate::record::Timestamp;

/// Often enough to notice a clock jump before it deletes many records.
const EVERY: Duration = Duration::from_secs(10);

/// Confirms the outbox's time until `stop`. Nothing is confirmed before the first answer with a date from the `ControlPlane`.
pub(super) async fn confirm(client: Arc<Client>, outbox: Outbox, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            // A stopping agent needs no time.
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Some(micros) = client.confirmed_unix_micros() {
            outbox.confirm_time(Timestamp::from_unix_micros(micros));
        }
    }
}
