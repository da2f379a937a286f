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

/// From here on [`peak_mib`] of this process begins anew (`clear_refs`).
pub(crate) fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is reset");
}

/// The memory that is resident, in MiB (`status`, `VmRSS`).
pub(crate) fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS")
}
