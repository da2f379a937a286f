//! File descriptors reserved for the HTTP server, so that an agent whose other connections use up the limit still reports
//! its health.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// So many connections can be accepted when the process has no descriptor left: a scraper, a probe, and two who look.
const KEPT: usize = 4;

/// That of this process: its descriptors are shared by all listeners.
pub(super) static RESERVE: DescriptorReserve = DescriptorReserve(Mutex::new(Vec::new()));

/// Open descriptors that stand for nothing.
pub(super) struct DescriptorReserve(Mutex<Vec<File>>);

impl DescriptorReserve {
    fn held(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes descriptors until there are enough. Whether there are: others may have been quicker.
    pub(super) fn refill(&self) -> bool {
        let mut held = self.held();
        while held.len() < KEPT {
            match File::open("/dev/null") {
                Ok(file) => held.push(file),
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether some are lacking: what lasts must not begin now.
    pub(super) fn is_short(&self) -> bool {
        self.held().len() < KEPT
    }

    /// Gives one back to the process. Whether there was one.
    pub(super) fn release(&self) -> bool {
        self.held().pop().is_some()
    }
}

/// Whether an error says that there are no descriptors left.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number == Some(Errno::MFILE.raw_os_error()) || number == Some(Errno::NFILE.raw_os_error())
}
