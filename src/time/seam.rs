//! The source of wall clock time and randomness: the machine, or in a simulation a seed (`docs/proof.md`).
//!
//! The monotonic clock is always tokio's, which a simulation advances itself. Shipped builds contain only three calls here.

use std::time::SystemTime;

#[cfg(feature = "simulation")]
pub use simulated::{Machine, simulate};

/// The wall clock time of this machine.
pub(crate) fn wall_clock() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(wall) = simulated::wall_clock() {
        return wall;
    }
    SystemTime::now()
}

/// A random number from 0 up to 1.
pub(crate) fn random_part() -> f64 {
    #[cfg(feature = "simulation")]
    if let Some(part) = simulated::random_part() {
        return part;
    }
    rand::random_range(0.0..=1.0)
}

/// A unique ID.
pub(crate) fn random_uuid() -> uuid::Uuid {
    #[cfg(feature = "simulation")]
    if let Some(id) = simulated::random_uuid() {
        return id;
    }
    uuid::Uuid::new_v4()
}

#[cfg(feature = "simulation")]
mod simulated {
    use std::cell::RefCell;
    use std::time::SystemTime;

    use uuid::Uuid;

    /// The machine on which this thread's agent runs.
    pub trait Machine {
        /// The machine's wall clock time.
        fn wall_clock(&self) -> SystemTime;
        /// 64 random bits.
        fn random(&self) -> u64;
    }

    thread_local! {
        static MACHINE: RefCell<Option<Box<dyn Machine>>> = const { RefCell::new(None) };
    }

    /// Runs this thread on `machine` from now on, or on the real one if `None`. Clocks are watched from scratch, as in a
    /// new process.
    pub fn simulate(machine: Option<Box<dyn Machine>>) {
        MACHINE.set(machine);
        crate::time::steady::begin_anew();
    }

    fn of<T>(ask: impl Fn(&dyn Machine) -> T) -> Option<T> {
        MACHINE.with_borrow(|machine| machine.as_deref().map(ask))
    }

    pub(super) fn wall_clock() -> Option<SystemTime> {
        of(|machine| machine.wall_clock())
    }

    pub(super) fn random_part() -> Option<f64> {
        of(|machine| machine.random() as f64 / u64::MAX as f64)
    }

    pub(super) fn random_uuid() -> Option<Uuid> {
        let bits = of(|machine| u128::from(machine.random()) << 64 | u128::from(machine.random()))?;
        Some(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid())
    }
}
