//! Counters of being slowed down: CPU time denied by a quota, clocks lowered by heat. They only grow; what matters is by
//! how much between two looks.

use std::time::Duration;

use super::{Limits, Root};

/// Counters since the group and the machine started.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Throttle {
    /// By the CPU quota of a control group; `None` without one.
    pub quota: Option<QuotaCounters>,
    /// Times that a core's or a package's clock was lowered by heat; `None` where nobody counts.
    pub thermal_events: Option<u64>,
}

/// What a quota did.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct QuotaCounters {
    /// Periods in which the group ran.
    pub periods: u64,
    /// Of them, those in which it had to stop.
    pub throttled_periods: u64,
    /// Time its threads were kept waiting, summed over CPUs.
    pub throttled: Duration,
}

impl QuotaCounters {
    /// Share of the periods since `before` in which the group had to stop, 0 to 1; `None` when too few passed to tell.
    pub(crate) fn share_since(&self, before: &QuotaCounters, at_least_periods: u64) -> Option<f64> {
        let periods = self.periods.checked_sub(before.periods)?;
        let throttled = self
            .throttled_periods
            .checked_sub(before.throttled_periods)?;
        (periods >= at_least_periods.max(1)).then(|| throttled as f64 / periods as f64)
    }
}

impl Throttle {
    pub(crate) fn read(root: &Root, limits: &Limits) -> Throttle {
        Throttle {
            quota: quota_counters(root, limits),
            thermal_events: thermal_events(root),
        }
    }
}

/// `cpu.stat` beside the tightest quota: `nr_periods`, `nr_throttled`, and `throttled_usec` (v2) or `throttled_time` in
/// nanoseconds (v1).
fn quota_counters(root: &Root, limits: &Limits) -> Option<QuotaCounters> {
    let group = limits.quota.as_ref()?.at.parent()?;
    let text = root.text(group.join("cpu.stat"))?;
    let entry = |name: &str| -> Option<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse().ok()
    };
    let micros = entry("throttled_usec").map(Duration::from_micros);
    Some(QuotaCounters {
        periods: entry("nr_periods")?,
        throttled_periods: entry("nr_throttled")?,
        throttled: micros.or_else(|| entry("throttled_time").map(Duration::from_nanos))?,
    })
}

/// Intel counts by core and by package; a package's count is the same on all its CPUs.
fn thermal_events(root: &Root) -> Option<u64> {
    let cpus = "/sys/devices/system/cpu";
    let mut sum = None;
    for name in root.names(cpus) {
        let is_cpu = name
            .strip_prefix("cpu")
            .is_some_and(|n| n.parse::<u32>().is_ok());
        if !is_cpu {
            continue;
        }
        let at = format!("{cpus}/{name}/thermal_throttle");
        if let Some(count) = root.number::<u64>(format!("{at}/core_throttle_count")) {
            *sum.get_or_insert(0) += count;
        }
        if name == "cpu0"
            && let Some(count) = root.number::<u64>(format!("{at}/package_throttle_count"))
        {
            *sum.get_or_insert(0) += count;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_count_the_same() {
        for (at, stat) in [
            (
                "cpu.max\n150000 100000",
                "cpu.stat\nusage_usec 9\nnr_periods 100\nnr_throttled 25\nthrottled_usec 2500000",
            ),
            (
                "cpu.cfs_quota_us\n150000\n=== /sys/fs/cgroup/cpu.cfs_period_us\n100000",
                "cpu.stat\nnr_periods 100\nnr_throttled 25\nthrottled_time 2500000000",
            ),
        ] {
            let kind = if at.starts_with("cpu.max") {
                "cgroup2 cgroup2 rw"
            } else {
                "cgroup cgroup rw,cpu"
            };
            let group = if at.starts_with("cpu.max") {
                "0::/"
            } else {
                "1:cpu:/"
            };
            let root = Root::of_report(&format!(
                "=== /proc/self/mountinfo\n30 23 0:26 / /sys/fs/cgroup rw - {kind}\n=== /proc/self/cgroup\n{group}\n=== /sys/fs/cgroup/{at}\n=== /sys/fs/cgroup/{stat}\n",
            ));
            let throttle = Throttle::read(&root, &Limits::read(&root));
            let counters = throttle.quota.unwrap();
            assert_eq!(
                (counters.periods, counters.throttled_periods),
                (100, 25),
                "{kind}"
            );
            assert_eq!(counters.throttled, Duration::from_millis(2500), "{kind}");
            assert_eq!(
                counters.share_since(&QuotaCounters::default(), 10),
                Some(0.25)
            );
            assert_eq!(counters.share_since(&QuotaCounters::default(), 1000), None);
        }
    }

    #[test]
    fn heat_is_counted_where_it_can_be() {
        let root = Root::of_report(
            "=== /sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count\n3\n=== /sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count\n5\n=== /sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count\n4\n=== /sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count\n5\n",
        );
        assert_eq!(thermal_events(&root), Some(12));
        assert_eq!(thermal_events(&Root::of_report("")), None);
    }
}
