//! A simulated outbox: its disk is in memory, and its threads' work is done by tasks.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

pub use crate::outbox::engine::simulated_disk::{Crash, Died, Disk, DiskFaults, DiskOutcome, DiskStep};

use crate::outbox::api::handle::{MaintenanceQueue, Outbox};
use crate::outbox::api::start::APPENDS;
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::open;
use crate::outbox::settings::Settings;
use crate::outbox::threads::maintenance::{Maintenance, MaintenanceRequest};
use crate::outbox::threads::writer::{self, WriteRequest, Writer};

/// Decides how long the disk takes.
pub trait Pace {
    /// For the next commit or page of records.
    fn next(&self) -> Duration;
}

/// The work of the outbox's threads, as tasks.
pub struct Driven {
    writer: Writer,
    write_requests: mpsc::Receiver<WriteRequest>,
    maintenance: Maintenance,
    requests: Receiver<MaintenanceRequest>,
    asked: Arc<Notify>,
}

/// Opens the outbox in `settings.dir` on this thread's disk. Its threads' work is done while [`Driven::run`] is polled.
pub fn open_driven(settings: Settings) -> Result<(Outbox, Driven), OpenError> {
    let dir = settings.dir.clone();
    let shared = open::restore(settings)?;
    let (appends, write_requests) = mpsc::channel(APPENDS);
    let (requests, requested) = std::sync::mpsc::channel();
    let asks = MaintenanceQueue::new(requests);
    let asked = asks.asked();
    let writer = Writer::new(&shared).map_err(|source| OpenError::Folder { path: dir, source })?;
    let mut maintenance = Maintenance::new(Arc::clone(&shared), appends.downgrade());
    maintenance.look_for_oldest();
    let driven = Driven { writer, write_requests, maintenance, requests: requested, asked };
    Ok((Outbox { shared, appends, requests: asks }, driven))
}

impl Driven {
    /// Works until all handles are gone.
    pub async fn run(self, pace: impl Pace) {
        let Self { mut writer, mut write_requests, mut maintenance, requests, asked } = self;
        let writing = async {
            while let Some(first) = write_requests.recv().await {
                tokio::time::sleep(pace.next()).await;
                writer.serve(first, &mut write_requests);
                let mut tried = Instant::now();
                while writer.is_broken() && writer.refuse_meanwhile(&mut write_requests) {
                    tokio::time::sleep(writer::REFUSE_WITHIN).await;
                    writer.try_again(&mut tried);
                }
            }
        };
        let maintaining = async {
            let mut ticked = Instant::now();
            loop {
                let request = match requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return maintenance.end(),
                    Err(std::sync::mpsc::TryRecvError::Empty) => {
                        let wait = maintenance.wait(ticked);
                        let _ = tokio::time::timeout(wait, asked.notified()).await;
                        // Between the end of the wait and the following work, others get a turn.
                        tokio::time::sleep(pace.next() / 8).await;
                        requests.try_recv().ok()
                    }
                };
                maintenance.step(request, &mut ticked);
            }
        };
        tokio::join!(biased; writing, maintaining);
    }
}
