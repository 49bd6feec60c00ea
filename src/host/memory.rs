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
    /// Pages of [`Memory::reserved_page_bytes`] set aside by the administrator, and those of them that are free. Nothing here
    /// uses them: what they hold is lost to this program.
    pub reserved_pages: Option<(u64, u64)>,
    /// Size of a page set aside.
    pub reserved_page_bytes: Option<u64>,
    /// Memory this process may lock; `u64::MAX` is all.
    pub lock_limit_bytes: Option<u64>,
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
            reserved_pages: entry(&info, "HugePages_Total").zip(entry(&info, "HugePages_Free")),
            reserved_page_bytes: entry_bytes(&info, "Hugepagesize"),
            lock_limit_bytes: root
                .text("/proc/self/limits")
                .and_then(|text| lock_limit_bytes(&text)),
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

/// `HugePages_Total:       0`
fn entry(info: &str, name: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}

/// `Max locked memory         8388608              8388608              bytes`
fn lock_limit_bytes(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// `always [madvise] never`
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (chosen, _) = rest.split_once(']')?;
    Some(chosen.to_owned())
}
