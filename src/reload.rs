//! Takes in secrets and certificates that have changed: when told to, and when a file of them is another than before.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use crate::control_plane::Client;
use crate::intake;

/// How often the files are looked at. A new key should not wait for a restart, nor for somebody to send a signal.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a file's content is taken to depend on.
type Stamp = Option<(SystemTime, u64)>;

/// Runs until `stop` is true. What cannot be used is said, and the old secrets stay.
pub async fn run(
    client: Arc<Client>,
    redis: intake::Server,
    mut told: mpsc::Receiver<()>,
    mut stop: watch::Receiver<bool>,
) {
    let mut files = client.secret_files();
    files.extend(redis.secret_files());
    let mut known = stamps(&files);
    loop {
        let found = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Some(()) = told.recv() => stamps(&files),
            () = tokio::time::sleep(LOOK_EVERY) => {
                let found = stamps(&files);
                if found == known {
                    continue;
                }
                found
            }
        };
        known = found;
        let (reading, redis) = (Arc::clone(&client), redis.clone());
        match tokio::task::spawn_blocking(move || (reading.reload(), redis.reload())).await {
            Ok((control_plane, redis)) => {
                let is_good = control_plane.is_ok() && redis.is_ok();
                tell("ControlPlane", control_plane);
                tell("Redis", redis);
                if is_good {
                    tracing::info!("secrets and certificates were read again");
                }
            }
            Err(error) => tracing::error!(%error, "reading secrets and certificates failed"),
        }
    }
}

fn tell(of: &str, read: Result<(), impl std::error::Error + 'static>) {
    if let Err(error) = read {
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, of, "secrets and certificates cannot be used; the old ones stay");
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    files.iter().map(stamp).collect()
}
