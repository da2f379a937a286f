//! Looks up when the oldest waiting record was accepted, even if nobody has read that far: the drain is paused, the link is
//! down, or this process has just started.
//! For packs that were read, the mark tells. Otherwise the header of the first unread pack is read, once until another pack
//! becomes the first.

use std::time::Duration;

use tokio::time::Instant;

use super::Maintenance;
use crate::outbox::format::log::Log;
use crate::outbox::segments::segment::ReadError;
use crate::outbox::state::{Stretch, Unread};

/// Pause after an unreadable header. The damage is handled when the records are read.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Maintenance {
    /// Looks up the first unread pack of each log for which it is unknown.
    pub(crate) fn look_for_oldest(&mut self) {
        let is_early = self.oldest_failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER);
        if is_early || !self.shared.dir_lock.is_in_place() {
            return;
        }
        self.oldest_failed_at = None;
        for log in Log::ALL {
            let Some(start) = self.shared.state().unknown_oldest(log) else { continue };
            let found = self.first_unread(log, start);
            if !matches!(found, Ok(Some(_))) {
                self.oldest_failed_at = Some(Instant::now());
            }
            if let Ok(found) = found {
                self.shared.state().unread[log.index()] = found;
            }
        }
    }

    fn first_unread(&mut self, log: Log, start: u64) -> Result<Option<Unread>, ReadError> {
        let stretches = self.shared.state().stretches(log, start);
        for Stretch { segment, base, end, .. } in stretches {
            self.make_room_for(&segment);
            let mut found = None;
            segment.read(log, start.max(base), |first, pack| {
                if first >= end {
                    return false;
                }
                let is_settled = self.shared.state().settled[log.index()].skip(first) != first;
                found =
                    pack.ok().filter(|_| !is_settled).map(|(header, _)| Unread::new(first, header.oldest));
                found.is_none()
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
