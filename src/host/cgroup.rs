//! What control groups allow this process: CPUs, CPU time and memory, versions 1 and 2, the whole chain of ancestors.
//!
//! A limit counts wherever it stands between this process's group and the top of what is mounted here: a container's own
//! group often says `max` while the pod's above it doesn't.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::{CpuSet, Root};

/// The tightest limits of the chain.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Limits {
    /// 1, 2, or `None` where no control groups are visible. A hybrid system counts as 1.
    pub version: Option<u32>,
    /// CPUs of the cpuset controller.
    pub cpuset: Option<CpuSet>,
    /// CPU time.
    pub quota: Option<Quota>,
    /// Memory that may be used before the group is reclaimed, throttled or killed.
    pub memory: Option<MemoryLimit>,
    /// Swap space that may be used; 0 is none.
    pub swap: Option<MemoryLimit>,
}

/// A CPU time quota.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quota {
    /// Microseconds of CPU time per period.
    pub quota_us: u64,
    /// Length of a period in microseconds.
    pub period_us: u64,
    /// The file that says so.
    pub at: PathBuf,
}

impl Quota {
    /// CPUs' worth of time, such as 1.5.
    pub(crate) fn cpus(&self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }

    /// Threads that can run all the time without being throttled: rounded down, at least one.
    pub(crate) fn threads(&self) -> usize {
        ((self.quota_us / self.period_us) as usize).max(1)
    }
}

/// A memory limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// The file that says so.
    pub at: PathBuf,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs", (self.cpus() * 100.0).round() / 100.0)
    }
}

/// Version 1 writes "no limit" as the largest page-aligned number; anything near it means the same.
const V1_NO_LIMIT_BYTES: u64 = 1 << 60;

impl Limits {
    pub(crate) fn read(root: &Root) -> Limits {
        let groups = root.text("/proc/self/cgroup").unwrap_or_default();
        let mounts = mounts(root);
        let chain = |controller| chain(root, &groups, &mounts, controller);
        let v2 = chain(None);
        let (cpu, cpuset, memory) = (
            chain(Some("cpu")),
            chain(Some("cpuset")),
            chain(Some("memory")),
        );
        let has_v1 = !(cpu.is_empty() && cpuset.is_empty() && memory.is_empty());
        Limits {
            version: match (has_v1, v2.is_empty()) {
                (true, _) => Some(1),
                (false, false) => Some(2),
                (false, true) => None,
            },
            cpuset: first_cpuset(root, &v2, &["cpuset.cpus.effective"])
                .or_else(|| first_cpuset(root, &cpuset, &["cpuset.effective_cpus", "cpuset.cpus"])),
            quota: tightest_quota(v2.iter().filter_map(|at| quota_v2(root, at)), |cpu_v1| {
                cpu_v1.extend(cpu.iter().filter_map(|at| quota_v1(root, at)));
            }),
            memory: v2
                .iter()
                .flat_map(|at| ["memory.max", "memory.high"].map(|name| at.join(name)))
                .chain(memory.iter().map(|at| at.join("memory.limit_in_bytes")))
                .filter_map(|at| memory_limit(root, at))
                .min_by_key(|limit| limit.bytes),
            swap: v2
                .iter()
                .filter_map(|at| memory_limit(root, at.join("memory.swap.max")))
                .chain(memory.iter().filter_map(|at| swap_v1(root, at)))
                .min_by_key(|limit| limit.bytes),
        }
    }
}

/// Bytes of the group with the tightest memory limit that can't be dropped: all but inactive pages of files, as Kubernetes
/// counts its working set. `None` without a limit.
pub(crate) fn memory_used(root: &Root, limits: &Limits) -> Option<u64> {
    let group = limits.memory.as_ref()?.at.parent()?;
    let used: u64 = root
        .number(group.join("memory.current"))
        .or_else(|| root.number(group.join("memory.usage_in_bytes")))?;
    let stat = root.text(group.join("memory.stat")).unwrap_or_default();
    let entry = |name: &str| {
        let mut lines = stat.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let droppable = entry("total_inactive_file ").or_else(|| entry("inactive_file "));
    Some(used.saturating_sub(droppable.unwrap_or(0)))
}

/// Processes of this process's group that the kernel killed for want of memory, so far; where the group doesn't count, of the whole
/// system.
pub(crate) fn oom_kills(root: &Root) -> Option<u64> {
    let groups = root.text("/proc/self/cgroup").unwrap_or_default();
    let mounts = mounts(root);
    let own = |controller, name| {
        let groups = chain(root, &groups, &mounts, controller);
        groups.first().map(|at| at.join(name))
    };
    let files = [
        own(None, "memory.events"),
        own(Some("memory"), "memory.oom_control"),
        Some(PathBuf::from("/proc/vmstat")),
    ];
    let count = |at: PathBuf| {
        let text = root.text(at)?;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    };
    files.into_iter().flatten().find_map(count)
}

/// Version 1 limits memory and swap together.
fn swap_v1(root: &Root, at: &Path) -> Option<MemoryLimit> {
    let both = memory_limit(root, at.join("memory.memsw.limit_in_bytes"))?;
    let memory = memory_limit(root, at.join("memory.limit_in_bytes"))?;
    Some(MemoryLimit {
        bytes: both.bytes.saturating_sub(memory.bytes),
        at: both.at,
    })
}

/// A mounted control group hierarchy.
#[derive(Debug)]
struct Mount {
    /// Group that appears at the mount point.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    /// Controllers of version 1; `None` for version 2.
    controllers: Option<Vec<String>>,
}

/// proc(5), `/proc/pid/mountinfo`: `36 35 98:0 /root /point opts [optional…] - type source superopts`
fn mounts(root: &Root) -> Vec<Mount> {
    let info = root.text("/proc/self/mountinfo").unwrap_or_default();
    info.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let controllers = match *right.first()? {
        "cgroup2" => None,
        "cgroup" => Some(right.get(2)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    Some(Mount {
        root: PathBuf::from(*left.get(3)?),
        point: PathBuf::from(*left.get(4)?),
        controllers,
    })
}

/// This process's group directory and its ancestors up to the mount point, nearest first; `controller` `None` is version 2.
fn chain(root: &Root, groups: &str, mounts: &[Mount], controller: Option<&str>) -> Vec<PathBuf> {
    let Some(mount) = mounts
        .iter()
        .find(|mount| match (&mount.controllers, controller) {
            (None, None) => true,
            (Some(all), Some(one)) => all.iter().any(|name| name == one),
            _ => false,
        })
    else {
        return Vec::new();
    };
    let Some(group) = group_of(groups, controller) else {
        return Vec::new();
    };
    let mut at = mount.point.join(below_mount(&group, &mount.root));
    if !root.has(&at) {
        at = mount.point.clone();
    }
    let ancestors = at
        .ancestors()
        .take_while(|path| path.starts_with(&mount.point));
    ancestors
        .map(Path::to_owned)
        .filter(|path| root.has(path))
        .collect()
}

/// cgroups(7): `4:memory:/group`, and `0::/group` for version 2.
fn group_of(groups: &str, controller: Option<&str>) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, names, group) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = match controller {
            None => number == "0" && names.is_empty(),
            Some(one) => names.split(',').any(|name| name == one),
        };
        matches.then(|| group.to_owned())
    })
}

/// The group's path below the mount's root. Inside a container without its own namespace, both name the host's path.
fn below_mount(group: &str, mount_root: &Path) -> PathBuf {
    let group = Path::new(group);
    let below = group
        .strip_prefix(mount_root)
        .or_else(|_| group.strip_prefix("/"))
        .unwrap_or(group);
    below
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect()
}

fn first_cpuset(root: &Root, chain: &[PathBuf], names: &[&str]) -> Option<CpuSet> {
    chain
        .iter()
        .find_map(|at| names.iter().find_map(|name| root.cpus(at.join(name))))
}

fn tightest_quota(
    v2: impl Iterator<Item = Quota>,
    add_v1: impl FnOnce(&mut Vec<Quota>),
) -> Option<Quota> {
    let mut quotas: Vec<Quota> = v2.collect();
    add_v1(&mut quotas);
    quotas
        .into_iter()
        .min_by(|a, b| a.cpus().total_cmp(&b.cpus()))
}

/// `max 100000` or `150000 100000`.
fn quota_v2(root: &Root, at: &Path) -> Option<Quota> {
    let at = at.join("cpu.max");
    let text = root.text(&at)?;
    let (quota, period) = text.split_once(' ')?;
    quota_of(quota.parse().ok()?, period.parse().ok()?, at)
}

/// A quota of -1 is none.
fn quota_v1(root: &Root, at: &Path) -> Option<Quota> {
    let quota: i64 = root.number(at.join("cpu.cfs_quota_us"))?;
    let period = root.number(at.join("cpu.cfs_period_us"))?;
    quota_of(
        u64::try_from(quota).ok()?,
        period,
        at.join("cpu.cfs_quota_us"),
    )
}

fn quota_of(quota_us: u64, period_us: u64, at: PathBuf) -> Option<Quota> {
    (quota_us > 0 && period_us > 0).then_some(Quota {
        quota_us,
        period_us,
        at,
    })
}

/// A number of bytes; `max` and version 1's giant number are no limit.
fn memory_limit(root: &Root, at: PathBuf) -> Option<MemoryLimit> {
    let bytes: u64 = root.number(&at)?;
    (bytes < V1_NO_LIMIT_BYTES).then_some(MemoryLimit { bytes, at })
}
