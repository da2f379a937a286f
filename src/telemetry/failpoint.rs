//! Points in the program where tests end the process, or pause it while they act on the other processes.
//!
//! `FAILPOINT=<point>=<n>=abort` aborts the process, as a crash would, when the point is reached for the n-th time.
//! `…=panic` panics there instead.
//! `FAILPOINT=<point>=<n>=hold:<file>` creates the file and waits until it is removed. Compiled in only with the feature
//! `failpoints`, which only test builds enable.

/// Called when a point is reached.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn reached(_point: &str) {}

#[cfg(feature = "failpoints")]
pub(crate) use planned::reached;

#[cfg(feature = "failpoints")]
mod planned {
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Plan {
        point: String,
        at: u64,
        action: String,
        count: AtomicU64,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    fn plan() -> Option<Plan> {
        let text = std::env::var("FAILPOINT").ok()?;
        let mut parts = text.splitn(3, '=').map(str::to_owned);
        let (point, at, action) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        Some(Plan { point, at, action, count: AtomicU64::new(0) })
    }

    /// Called when a point is reached.
    pub(crate) fn reached(point: &str) {
        let Some(plan) = PLAN.get_or_init(plan).as_ref().filter(|plan| plan.point == point) else { return };
        if plan.count.fetch_add(1, Ordering::Relaxed) + 1 != plan.at {
            return;
        }
        match plan.action.strip_prefix("hold:").map(Path::new) {
            Some(file) => {
                // If the file cannot be created nothing pauses, and the test that waits for it reports that.
                let _ = std::fs::write(file, point);
                while file.exists() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
            None => {
                assert!(plan.action != "panic", "a test wants a panic here");
                std::process::abort()
            }
        }
    }
}
