//! Points where tests make the storage fail: each is one step of writing, before or after it happens.
//!
//! Empty in release builds.

#[cfg(test)]
thread_local! {
    static POINTS_LEFT: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
    static SEEN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Fails if a test wants this step of this thread to fail.
#[inline]
#[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "tests make it fail"))]
pub(crate) fn point() -> std::io::Result<()> {
    #[cfg(test)]
    {
        SEEN.set(SEEN.get() + 1);
        match POINTS_LEFT.get() {
            Some(0) => {
                POINTS_LEFT.set(None);
                return Err(std::io::Error::from_raw_os_error(28));
            }
            Some(left) => POINTS_LEFT.set(Some(left - 1)),
            None => {}
        }
    }
    Ok(())
}

/// Makes the n-th step from now on fail, once; `None`: no step.
#[cfg(test)]
pub(crate) fn fail_at(n: Option<u64>) {
    POINTS_LEFT.set(n);
    SEEN.set(0);
}

/// The number of steps since [`fail_at`].
#[cfg(test)]
pub(crate) fn seen() -> u64 {
    SEEN.get()
}

/// Whether the failure has not happened yet.
#[cfg(test)]
pub(crate) fn is_armed() -> bool {
    POINTS_LEFT.get().is_some()
}
