//! Checks the outbox's folder and disk before use, or beside the agent that uses it, without changing the outbox.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::outbox::api::handle::Outbox;
use crate::outbox::engine::database::Durability;
use crate::outbox::recovery::manifest;
use crate::outbox::state::medium::Medium;
use crate::outbox::state::reserve;
use crate::telemetry::finding::Finding;

const WHAT: &str = "outbox";
const DISK: &str = "disk";
/// Bytes written and synced repeatedly to measure the duration.
const SYNCED_BYTES: usize = 64 << 10;
const SYNCS: usize = 5;
/// A commit that takes this long delays Redis.
const SLOW: Duration = Duration::from_millis(100);

/// The settings to check.
#[derive(Clone, Debug)]
pub struct ProbeSettings {
    /// Its folder.
    pub dir: PathBuf,
    /// Its size limit.
    pub max_bytes: u64,
    /// The space to leave free.
    pub min_free_bytes: u64,
    /// Whether commits wait for the disk.
    pub durability: Durability,
}

/// The id of the outbox in this folder, if there is one that can be read.
pub fn id_in(dir: &Path) -> Option<uuid::Uuid> {
    manifest::read(dir).ok().flatten()
}

/// Checks the folder and its disk.
pub fn probe(settings: &ProbeSettings) -> Vec<Finding> {
    let mut found = vec![folder(settings)];
    // A missing folder will be created in its nearest existing ancestor.
    let Some(place) = settings.dir.ancestors().find(|path| path.is_dir() || path.as_os_str().is_empty())
    else {
        return found;
    };
    let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
    found.push(file_system(settings, place));
    found.push(space(settings, place));
    found.push(sync(settings, place));
    found
}

fn folder(settings: &ProbeSettings) -> Finding {
    let dir = settings.dir.display();
    if let Err(error) = manifest::read(&settings.dir) {
        return Finding::failed(
            WHAT,
            error.to_string(),
            "use the release that wrote it, or another OUTBOX_DIR",
        );
    }
    match (Outbox::is_in_use(&settings.dir), id_in(&settings.dir)) {
        (Ok(Some(_)), _) => Finding::ok(WHAT, format!("{dir}: in use by a running agent")),
        (Ok(None), Some(id)) => Finding::ok(WHAT, format!("{dir}: the outbox {id} can be opened")),
        (Ok(None), None) => {
            Finding::ok(WHAT, format!("{dir}: no outbox here; an agent creates an empty one at its start"))
        }
        (Err(error), _) => Finding::failed(
            WHAT,
            error.to_string(),
            "make it writable for the agent's user, or set OUTBOX_DIR",
        ),
    }
}

fn file_system(settings: &ProbeSettings, place: &Path) -> Finding {
    const WHAT: &str = "file_system";
    let medium = match Medium::of(place) {
        Ok(medium) => medium,
        Err(error) => {
            return Finding::warning(
                WHAT,
                format!("{}: {error}", place.display()),
                "check whether it is mounted",
            );
        }
    };
    match medium {
        Medium::Memory(name) if settings.durability == Durability::Fsync => Finding::failed(
            WHAT,
            format!(
                "{} is on {name}, which is in memory: a power cut loses even synced records",
                place.display()
            ),
            "set OUTBOX_DIR to a folder on a disk; or OUTBOX_DURABILITY=process, if losing records is acceptable",
        ),
        Medium::Memory(name) => Finding::warning(
            WHAT,
            format!("{} is on {name}: a power cut loses the waiting records", place.display()),
            "OUTBOX_DURABILITY=process accepts this",
        ),
        Medium::Unreliable(name) => Finding::warning(
            WHAT,
            format!("{} is on {name}, whose syncs may not be reliable", place.display()),
            "use a local disk with ext4 or XFS, on which the outbox is tested",
        ),
        Medium::Disk => Finding::ok(WHAT, "keeps what is synced to it"),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn space(settings: &ProbeSettings, place: &Path) -> Finding {
    const WHAT: &str = "space";
    let Some(free) = reserve::free_bytes(place) else {
        return Finding::warning(WHAT, "the free space is unknown", "check whether it is mounted");
    };
    let (least, most) = (settings.min_free_bytes, settings.max_bytes);
    if free < least {
        return Finding::failed(
            WHAT,
            format!(
                "{} free, less than OUTBOX_MIN_FREE_BYTES ({}): records stay in Redis",
                mib(free),
                mib(least)
            ),
            "free some space, or lower OUTBOX_MIN_FREE_BYTES",
        );
    }
    if free - least < most {
        return Finding::warning(
            WHAT,
            format!("{} free, too little for an outbox of OUTBOX_MAX_BYTES ({})", mib(free), mib(most)),
            "records stay in Redis when it is full; free some space, or lower OUTBOX_MAX_BYTES",
        );
    }
    Finding::ok(WHAT, format!("{} free", mib(free)))
}

/// Writes and syncs a small file, in the folder itself if it exists.
fn sync(settings: &ProbeSettings, place: &Path) -> Finding {
    let path = place.join(format!(".dataplane-agent-check-{}", std::process::id()));
    let timed = || -> std::io::Result<Vec<Duration>> {
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        let block = vec![0xa5; SYNCED_BYTES];
        let mut took = Vec::new();
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok(took)
    };
    let timed = timed();
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "cannot remove the check's file");
    }
    match timed {
        Err(error) => Finding::failed(
            DISK,
            format!("{}: cannot write and sync: {error}", place.display()),
            "make it writable for the agent's user, and mounted read-write; or set OUTBOX_DIR",
        ),
        Ok(took) => {
            let usual = took[took.len() / 2];
            let says = format!("64 KiB written and synced in {:.1} ms", usual.as_secs_f64() * 1e3);
            if usual > SLOW && settings.durability == Durability::Fsync {
                let advice = "a commit takes at least that long: use a faster disk for OUTBOX_DIR";
                return Finding::warning(DISK, says, advice);
            }
            Finding::ok(DISK, says)
        }
    }
}
