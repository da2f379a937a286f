//! A simulated outbox: its disk in memory, and its threads' work as tasks.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

pub use crate::outbox::engine::simulated_disk::{Crash, Died, Disk, Fate, Outcome, Step};

use crate::outbox::api::handle::{Asks, Outbox};
use crate::outbox::api::start::APPENDS;
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::open;
use crate::outbox::settings::Settings;
use crate::outbox::threads::maintenance::{Keeper, Request};
use crate::outbox::threads::writer::{self, Order, Writer};

/// How long the disk needs.
pub trait Pace {
    /// For the next commit or page of records.
    fn next(&self) -> Duration;
}

/// What the outbox's threads do, as tasks.
pub struct Driven {
    writer: Writer,
    orders: mpsc::Receiver<Order>,
    keeper: Keeper,
    requests: Receiver<Request>,
    asked: Arc<Notify>,
}

/// Opens the outbox in `settings.dir` on this thread's disk. Its threads' work is done while [`Driven::run`] is polled.
pub fn open_driven(settings: Settings) -> Result<(Outbox, Driven), OpenError> {
    let dir = settings.dir.clone();
    let shared = open::restore(settings)?;
    let (appends, orders) = mpsc::channel(APPENDS);
    let (requests, requested) = std::sync::mpsc::channel();
    let asks = Asks::new(requests);
    let asked = asks.asked();
    let writer = Writer::new(&shared).map_err(|source| OpenError::Folder { path: dir, source })?;
    let mut keeper = Keeper::new(Arc::clone(&shared), appends.downgrade());
    keeper.look_for_oldest();
    let driven = Driven { writer, orders, keeper, requests: requested, asked };
    Ok((Outbox { shared, appends, requests: asks }, driven))
}

impl Driven {
    /// Does what there is to do until nobody can ask any more.
    pub async fn run(self, pace: impl Pace) {
        let Self { mut writer, mut orders, mut keeper, requests, asked } = self;
        let writing = async {
            while let Some(first) = orders.recv().await {
                tokio::time::sleep(pace.next()).await;
                writer.serve(first, &mut orders);
                let mut tried = Instant::now();
                while writer.is_broken() && writer.refuse_meanwhile(&mut orders) {
                    tokio::time::sleep(writer::REFUSE_WITHIN).await;
                    writer.try_again(&mut tried);
                }
                writer.has_turned();
            }
        };
        let keeping = async {
            let mut ticked = Instant::now();
            loop {
                let request = match requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return keeper.end(),
                    Err(std::sync::mpsc::TryRecvError::Empty) => {
                        let wait = keeper.wait(ticked);
                        let _ = tokio::time::timeout(wait, asked.notified()).await;
                        // Between the end of the wait and what follows, others have their turn.
                        tokio::time::sleep(pace.next() / 8).await;
                        requests.try_recv().ok()
                    }
                };
                keeper.step(request, &mut ticked);
            }
        };
        tokio::join!(biased; writing, keeping);
    }
}
