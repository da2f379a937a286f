//! `format.json`: the version of everything on disk, and this outbox's id. Read before anything else is touched.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::OpenError;
use super::quarantine;
use crate::outbox::engine::names::{replace_file, sync_dir};
use crate::outbox::format::FORMAT;

const NAME: &str = "format.json";

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: serde_json::Value,
    id: uuid::Uuid,
}

/// The outbox's id, if there is an outbox. Fails if another release wrote it.
pub(crate) fn read(dir: &Path) -> Result<Option<uuid::Uuid>, OpenError> {
    let path = dir.join(NAME);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Folder { path, source }),
    };
    let value: Result<serde_json::Value, _> = serde_json::from_slice(&bytes);
    let format = value.as_ref().ok().and_then(|value| value.get("format"));
    if let Some(format) = format.filter(|format| **format != FORMAT) {
        return Err(OpenError::Format { path: dir.to_path_buf(), found: format.to_string() });
    }
    match value.and_then(serde_json::from_value::<Manifest>) {
        Ok(manifest) => Ok(Some(manifest.id)),
        Err(error) => Err(OpenError::Manifest { path, source: error }),
    }
}

/// Reads the file, or writes it if it is missing. A damaged one is quarantined and written again: each value of the outbox
/// carries its own version.
pub(crate) fn read_or_create(dir: &Path) -> Result<uuid::Uuid, OpenError> {
    let folder = |source| OpenError::Folder { path: dir.join(NAME), source };
    match read(dir) {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => {}
        Err(OpenError::Manifest { source, .. }) => {
            quarantine::move_files(dir, &dir.join(NAME), NAME, NAME, source.to_string()).map_err(folder)?;
        }
        Err(error) => return Err(error),
    }
    let manifest = Manifest { format: FORMAT.into(), id: crate::time::random_uuid() };
    let text = serde_json::to_vec(&manifest).map_err(|error| folder(error.into()))?;
    replace_file(&dir.join(NAME), &text).map_err(folder)?;
    sync_dir(dir).map_err(|error| {
        // IMPORTANT: the next start would trust a file that is readable but not on disk. If it cannot be removed either,
        // the disk accepts no writes at all, and no other start gets any further.
        let _ = std::fs::remove_file(dir.join(NAME));
        folder(error)
    })?;
    Ok(manifest.id)
}
