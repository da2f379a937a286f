//! Opens an outbox: first the files, then the threads.

use std::path::Path;
use std::sync::{Arc, mpsc};

use super::handle::{MaintenanceQueue, Outbox, Threads};
use crate::outbox::recovery::error::OpenError;
use crate::outbox::recovery::{manifest, open};
use crate::outbox::settings::Settings;
use crate::outbox::state::shared::Shared;
use crate::outbox::threads::maintenance::Maintenance;
use crate::outbox::threads::writer::{WriteRequest, Writer};

/// Appends that may wait for the writer: more than the intake ever has in flight.
pub(crate) const APPENDS: usize = 16;

impl Outbox {
    /// Whether another process has the outbox in `dir` open. If so, with its id if that can be read.
    pub fn is_in_use(dir: &Path) -> Result<Option<Option<uuid::Uuid>>, OpenError> {
        if !dir.join("lock").exists() {
            return Ok(None);
        }
        match open::lock(dir) {
            Ok(_) => Ok(None),
            Err(OpenError::Locked(_)) => Ok(Some(manifest::read(dir).ok().flatten())),
            Err(error) => Err(error),
        }
    }

    /// Opens the existing outbox in `settings.dir`.
    pub fn open_existing(settings: Settings) -> Result<(Self, Threads), OpenError> {
        if manifest::read(&settings.dir)?.is_none() {
            return Err(OpenError::Absent(settings.dir));
        }
        Self::open(settings)
    }

    /// Opens the outbox in `settings.dir`, creating it if it is missing. Damaged parts are quarantined.
    pub fn open(settings: Settings) -> Result<(Self, Threads), OpenError> {
        let dir = settings.dir.clone();
        let shared = open::restore(settings)?;
        start(shared).map_err(|source| OpenError::Folder { path: dir, source })
    }
}

fn start(shared: Arc<Shared>) -> std::io::Result<(Outbox, Threads)> {
    let (appends, appended) = tokio::sync::mpsc::channel::<WriteRequest>(APPENDS);
    let (requests, requested) = mpsc::channel();
    let writer = Writer::new(&shared)?;
    let mut maintenance = Maintenance::new(Arc::clone(&shared), appends.downgrade());
    // Before anybody can ask for it.
    maintenance.look_for_oldest();
    let threads = Threads {
        writer: std::thread::Builder::new()
            .name("outbox-writer".into())
            .spawn(move || writer.run(appended))?,
        maintenance: std::thread::Builder::new()
            .name("outbox-maint".into())
            .spawn(move || maintenance.run(&requested))?,
    };
    Ok((Outbox { shared, appends, requests: MaintenanceQueue::new(requests) }, threads))
}
