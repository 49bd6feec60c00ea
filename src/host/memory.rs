//! Memory: how much there is, how much is free, swap, huge pages; from `/proc/meminfo` and sysfs.

use super::Root;

/// Memory of the machine, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub total_bytes: Option<u64>,
    /// What programs can get without swapping; page cache that can be dropped included.
    pub available_bytes: Option<u64>,
    /// Swap space.
    pub swap_total_bytes: Option<u64>,
    /// Swap space in use.
    pub swap_used_bytes: Option<u64>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
}

impl Memory {
    pub(super) fn read(root: &Root) -> Memory {
        let info = root.text("/proc/meminfo").unwrap_or_default();
        let swap_total_bytes = entry_bytes(&info, "SwapTotal");
        let swap_free_bytes = entry_bytes(&info, "SwapFree");
        Memory {
            total_bytes: entry_bytes(&info, "MemTotal"),
            available_bytes: entry_bytes(&info, "MemAvailable"),
            swap_total_bytes,
            swap_used_bytes: swap_total_bytes
                .zip(swap_free_bytes)
                .map(|(all, free)| all.saturating_sub(free)),
            huge_pages: root
                .text("/sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| chosen(&text)),
        }
    }
}

/// `MemTotal:       16303428 kB`
fn entry_bytes(info: &str, name: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// `always [madvise] never`
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (chosen, _) = rest.split_once(']')?;
    Some(chosen.to_owned())
}
