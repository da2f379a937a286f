//! Makes the allocator return memory: see `docs/decisions/the-system-allocator.md`.

/// glibc's initial value. Once it is set explicitly, glibc does not raise it.
#[cfg(target_env = "gnu")]
const THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

/// Makes glibc return large blocks as soon as they are freed, unless the environment says otherwise. glibc reads this setting
/// from the environment at process start only, so the process re-executes itself; if that fails, it runs on unchanged.
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
        // Returns only on error.
        let _ = std::process::Command::new(program).arg0(itself).args(arguments).env(name, bytes).exec();
    }
}

/// Other allocators do not raise it.
#[cfg(not(target_env = "gnu"))]
pub(super) fn keep_low() {}
