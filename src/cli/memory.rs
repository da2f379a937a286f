//! How the allocator gives memory back: see `docs/decisions/the-system-allocator.md`.

/// glibc's own start value. Once it is set, glibc does not raise it.
#[cfg(target_env = "gnu")]
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

/// Has glibc give back what is large as soon as it is freed, where the environment does not say otherwise. glibc reads that
/// from the environment, and only when a process begins: so this one begins again, in place. If it cannot, it goes on as it is.
#[cfg(target_env = "gnu")]
pub(super) fn keep_low() {
    use std::os::unix::process::CommandExt as _;

    let (name, bytes) = THRESHOLD;
    let is_set = [name, "GLIBC_TUNABLES"].iter().any(|name| std::env::var_os(name).is_some());
    let mut arguments = std::env::args_os();
    if !is_set
        && let Some(itself) = arguments.next()
        && let Ok(program) = std::env::current_exe()
    {
        // Only ever returns with an error.
        let _ = std::process::Command::new(program).arg0(itself).args(arguments).env(name, bytes).exec();
    }
}

/// Other allocators do not raise it by themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_low() {}
