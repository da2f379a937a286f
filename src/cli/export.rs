//! Writes the file of `outbox export`, and explains a partial export. Records in the file have left the outbox and exist
//! nowhere else.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::outbox::Exported;

/// An export that stopped before the end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// The file was empty and has been removed.
    #[error("{}: nothing was exported, the outbox is unchanged", path.display())]
    Nothing {
        path: PathBuf,
        #[source]
        source: anyhow::Error,
    },
    /// The file holds the only copy of some records.
    #[error(
        "{} records and {} dead letters are in {} and no longer in the outbox: keep this file, import it into the target \
         outbox with --incomplete, and export the rest to another file. The export stopped",
        exported.records, exported.dead_letters, path.display()
    )]
    HalfWay {
        path: PathBuf,
        exported: Exported,
        #[source]
        source: anyhow::Error,
    },
}

impl Stopped {
    /// What is durable in the file.
    pub(super) fn exported(&self) -> Exported {
        match self {
            Self::Nothing { .. } => Exported::default(),
            Self::HalfWay { exported, .. } => *exported,
        }
    }
}

/// Creates the file, makes its name durable, and has `write` fill it. `write` reports what is durable in it.
pub(super) async fn to_new_file(
    path: &Path,
    mut progress: impl FnMut(u64),
    write: impl AsyncFnOnce(&mut File, &mut dyn FnMut(Exported)) -> anyhow::Result<Exported>,
) -> anyhow::Result<Exported> {
    let mut file = create(path)?;
    let mut exported = Exported::default();
    let mut told = |so_far: Exported| {
        exported = so_far;
        progress(so_far.total());
    };
    let source = match write(&mut file, &mut told).await {
        Ok(exported) => return Ok(exported),
        Err(source) => source,
    };
    let path = path.to_path_buf();
    if file.metadata().is_ok_and(|meta| meta.len() == 0) {
        // An empty file would only block the next attempt.
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        return Err(Stopped::Nothing { path, source }.into());
    }
    Err(Stopped::HalfWay { path, exported, source }.into())
}

fn create(path: &Path) -> anyhow::Result<File> {
    let made = File::create_new(path);
    let name = path.display();
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
            "{name} already exists and may be the only copy of its records: export to another file. If {name} is an earlier \
             export, `outbox import {name}` imports it; add --incomplete if that export had stopped"
        ),
        made => {
            let file = made.with_context(|| name.to_string())?;
            // IMPORTANT: exported records leave the outbox, so the file's name must survive a power cut too.
            sync_parent(path).with_context(|| name.to_string())?;
            Ok(file)
        }
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Parses the name of a file to create.
pub(super) fn new_file(text: &str) -> Result<PathBuf, String> {
    if text == "-" {
        return Err(
            "cannot export to standard output: a record leaves the outbox only when it is safe on disk. Name a file (./- \
                    for a file called -)"
                .into(),
        );
    }
    Ok(text.into())
}

/// Parses the name of a file to read.
pub(super) fn old_file(text: &str) -> Result<PathBuf, String> {
    if text == "-" {
        return Err(
            "cannot import from standard input: the file is read twice, first to check it. Name a file (./- for a file \
                    called -)"
                .into(),
        );
    }
    Ok(text.into())
}
