//! What a process has used so far, by proc(5).

use super::harness::memory_mib;

/// Kernel clock ticks a second: the same on every Linux this runs on.
const TICKS: f64 = 100.0;

/// User and system time, in seconds (`stat`, fields 14 and 15).
pub(crate) fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks"));
    ticks.sum::<f64>() / TICKS
}

/// The most memory that was resident, in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmHWM")
}

/// The memory that is resident, in MiB.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS")
}
