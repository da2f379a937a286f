//! What must hold for any bytes that come from outside: a function a fuzz target, which panics where it does not.
//!
//! `fuzz/` runs these under libFuzzer, one target for each of [`TARGETS`]. The unit tests run them over the seeds in
//! `fuzz/corpus`, the past findings in `fuzz/findings` and the messages in `data/samples`, on any toolchain.
//!
//! No bytes may panic, but each says more than that: what is accepted means what another parser says it means, and is
//! accepted again as the same; what is rejected is rejected for a reason that is true; what is stored comes back.

mod acceptance;
mod answers;
mod inputs;
mod members;
mod packs;
mod records;
mod times;

pub use answers::{batch_answer, commands, key_set, quota_answer, retry_after};
pub use inputs::{admin_body, answer, dotenv, encoded_answer, import};
pub use packs::pack;
pub use records::{lifecycle, quota, usage};
pub use times::timestamp;

/// A property by its name, which is its fuzz target's and its folders'.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 15] = [
    ("usage", usage),
    ("lifecycle", lifecycle),
    ("quota", quota),
    ("timestamp", timestamp),
    ("pack", pack),
    ("quota_answer", quota_answer),
    ("batch_answer", batch_answer),
    ("commands", commands),
    ("key_set", key_set),
    ("retry_after", retry_after),
    ("answer", answer),
    ("encoded_answer", encoded_answer),
    ("import", import),
    ("dotenv", dotenv),
    ("admin_body", admin_body),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};

    use super::TARGETS;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    }

    /// What is in a folder, in order; nothing if it is not there.
    fn entries(folder: &Path) -> Vec<PathBuf> {
        let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
        let mut paths: Vec<_> = found.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// Says which file it was, whatever becomes of it.
    fn replay(property: fn(&[u8]), file: &Path) {
        let data = std::fs::read(file).unwrap();
        if let Err(panic) = std::panic::catch_unwind(|| property(&data)) {
            eprintln!("the file was {}", file.display());
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn every_seed_and_every_past_finding_holds() {
        for (name, property) in TARGETS {
            let seeds = entries(&root().join("fuzz/corpus").join(name));
            assert!(!seeds.is_empty(), "no seeds for {name}");
            let findings = entries(&root().join("fuzz/findings").join(name));
            for file in seeds.iter().chain(&findings) {
                replay(property, file);
            }
        }
    }

    #[test]
    fn every_sample_holds_whichever_queue_it_is_pushed_to() {
        let folders = entries(&root().join("data/samples"));
        let samples: Vec<_> = folders.iter().flat_map(|f| entries(f)).flat_map(|f| entries(&f)).collect();
        assert!(samples.len() > 100, "{} samples", samples.len());
        for (_, property) in &TARGETS[..3] {
            for file in &samples {
                replay(*property, file);
            }
        }
    }

    #[test]
    fn fuzz_has_a_target_and_folders_for_these_and_no_others() {
        let ours: BTreeSet<_> = TARGETS.iter().map(|(name, _)| OsString::from(name)).collect();
        let stems = |folder: &str| -> BTreeSet<_> {
            let paths = entries(&root().join("fuzz").join(folder));
            paths.iter().map(|path| path.file_stem().unwrap().to_owned()).collect()
        };
        assert_eq!(stems("fuzz_targets"), ours);
        assert_eq!(stems("corpus"), ours);
        assert!(stems("findings").is_subset(&ours), "{:?}", stems("findings"));
        let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in fuzz/Cargo.toml");
        }
    }
}
