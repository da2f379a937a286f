//! File descriptors reserved for the HTTP server, so that an agent whose other connections use up the limit still reports
//! its health.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// Connections that can be accepted when the process has no descriptor left: a scraper, a probe, and two people.
const KEPT: usize = 4;

/// This process' reserve: all listeners share its descriptors.
pub(super) static RESERVE: DescriptorReserve = DescriptorReserve(Mutex::new(Vec::new()));

/// Open descriptors that serve only as placeholders.
pub(super) struct DescriptorReserve(Mutex<Vec<File>>);

impl DescriptorReserve {
    fn held(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens descriptors until the reserve is full. Returns whether it is: other code may take them first.
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

    /// Whether the reserve is incomplete: then nothing long-lived may start.
    pub(super) fn is_short(&self) -> bool {
        self.held().len() < KEPT
    }

    /// Returns a descriptor to the process. Returns whether there was one.
    pub(super) fn release(&self) -> bool {
        self.held().pop().is_some()
    }
}

/// Whether an error means that no descriptors are left.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number == Some(Errno::MFILE.raw_os_error()) || number == Some(Errno::NFILE.raw_os_error())
}
