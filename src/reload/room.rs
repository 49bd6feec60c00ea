//! Whether memory holds a second engine beside the one that runs.

use crate::host::cgroup::memory_used;
use crate::host::{Host, Root};
use crate::plan::mb;

/// Share of the free memory left to others while two engines run, and its bounds.
const HEADROOM_DIVISOR: u64 = 20;
const HEADROOM_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=512 << 20;

/// An engine that needs this much can start beside the one that runs.
pub(crate) fn holds(needed_bytes: u64) -> bool {
    free_bytes().is_none_or(|free| needed_bytes <= usable(free))
}

/// Why a reload is refused, and what can be done.
pub(crate) fn refusal(needed_bytes: u64) -> String {
    let free = free_bytes().map_or(0, usable);
    format!(
        "{} MB are needed beside the engine that runs, {} MB are free: `bitnet-launch reload --gap` ends it before the new one starts, and requests wait meanwhile",
        mb(needed_bytes),
        mb(free)
    )
}

/// This machine as the next engine finds it once the one that runs, if one does, has ended.
pub(crate) fn host_without(engine: Option<u32>) -> Host {
    let mut host = Host::detect();
    let held = engine.and_then(anonymous_bytes);
    if let (Some(available), Some(held)) = (&mut host.memory.available_bytes, held) {
        *available += held;
    }
    host
}

/// Memory that is free now, within the limits; `None` where nobody tells.
fn free_bytes() -> Option<u64> {
    let root = Root::live();
    let host = Host::detect();
    let within = host.limits.memory.as_ref().and_then(|limit| {
        let used = memory_used(&root, &host.limits)?;
        Some(limit.bytes.saturating_sub(used))
    });
    let all = [host.memory.available_bytes, within];
    all.into_iter().flatten().min()
}

fn usable(free: u64) -> u64 {
    let (least, most) = (*HEADROOM_BYTES.start(), *HEADROOM_BYTES.end());
    free.saturating_sub((free / HEADROOM_DIVISOR).clamp(least, most))
}

/// Memory of a process that no file backs.
fn anonymous_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_left_to_others() {
        const MB: u64 = 1 << 20;
        assert_eq!(usable(100 * MB), 84 * MB);
        assert_eq!(usable(1000 * MB), 950 * MB);
        assert_eq!(usable(100_000 * MB), (100_000 - 512) * MB);
        assert_eq!(usable(0), 0);
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(anonymous_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 16));
        assert!(free_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
