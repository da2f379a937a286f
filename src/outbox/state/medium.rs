//! What the outbox's file system keeps.

use std::path::Path;

use crate::outbox::engine::database::Durability;

/// File systems by the magic numbers of statfs(2): those in memory, and those whose syncs may not be reliable.
const IN_MEMORY: [(u64, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];
const UNRELIABLE: [(u64, &str); 5] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
    (0x794c_7630, "overlayfs"),
];

/// What a file system keeps of synced data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// It survives a power cut.
    Disk,
    /// Syncs may not be reliable on this file system.
    Unreliable(&'static str),
    /// Nothing survives a power cut on this file system.
    Memory(&'static str),
}

impl Medium {
    /// The medium of an existing path.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        #[cfg(feature = "simulation")]
        if crate::outbox::engine::simulated_disk::disk().is_some() {
            return Ok(Self::Disk);
        }
        // The type's width and sign differ between platforms; the magic numbers have 32 bits.
        let magic = rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff;
        let named =
            |all: &[(u64, &'static str)]| all.iter().find(|(of, _)| *of == magic).map(|(_, name)| *name);
        let unreliable = || named(&UNRELIABLE).map(Self::Unreliable);
        Ok(named(&IN_MEMORY).map(Self::Memory).or_else(unreliable).unwrap_or(Self::Disk))
    }

    /// What an acknowledged record survives on this medium.
    pub(crate) const fn durability(self, configured: Durability) -> Durability {
        match self {
            Self::Memory(_) => Durability::Process,
            Self::Disk | Self::Unreliable(_) => configured,
        }
    }
}
