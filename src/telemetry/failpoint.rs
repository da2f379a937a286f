//! Points in the program at which tests end the process, or hold it while they do something to the others.
//!
//! `FAILPOINT=<point>=<n>=abort` ends it, as a crash does, when the point is reached for the n-th time.
//! `…=panic` panics there instead.
//! `FAILPOINT=<point>=<n>=hold:<file>` makes the file then, and goes on when it has been removed. Compiled in with
//! the feature `failpoints` only, which only test builds have.

/// A point is reached.
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

    /// A point is reached.
    pub(crate) fn reached(point: &str) {
        let Some(plan) = PLAN.get_or_init(plan).as_ref().filter(|plan| plan.point == point) else { return };
        if plan.count.fetch_add(1, Ordering::Relaxed) + 1 != plan.at {
            return;
        }
        match plan.action.strip_prefix("hold:").map(Path::new) {
            Some(file) => {
                // A file that cannot be made holds nothing, and the test that waits for it says so.
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
