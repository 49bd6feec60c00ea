//! Cores and who shares them: packages, physical cores, SMT siblings, core kinds, caches, NUMA nodes; from sysfs.

use std::collections::BTreeSet;

use super::{CpuSet, Root};

const CPUS: &str = "/sys/devices/system/cpu";

/// Cores below this share of the largest capacity count as efficiency cores (`cpu_capacity`, 0 to 1024).
const EFFICIENT_BELOW_CAPACITY: f64 = 0.7;
/// Cores below this share of the highest clock do, where there is nothing better to go by. Preferred cores of one kind
/// differ by less.
const EFFICIENT_BELOW_CLOCK: f64 = 0.75;

/// What a core is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CoreKind {
    /// The fast ones; all cores of a machine with one kind.
    Performance,
    /// The frugal ones of a hybrid machine.
    Efficiency,
}

/// One logical CPU that is online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogicalCpu {
    /// Its number.
    pub id: usize,
    /// Socket.
    pub package: Option<usize>,
    /// Logical CPUs of the same physical core, itself included.
    pub siblings: Option<CpuSet>,
    /// What its core is built for.
    pub kind: CoreKind,
    /// Relative speed, 0 to 1024.
    pub capacity: Option<u32>,
    /// Highest clock.
    pub max_khz: Option<u64>,
    /// NUMA node.
    pub node: Option<usize>,
}

impl LogicalCpu {
    /// The lowest-numbered sibling stands for the physical core; a CPU without known siblings is a core of its own.
    pub(crate) fn core(&self) -> usize {
        self.siblings
            .as_ref()
            .and_then(|s| s.iter().next())
            .unwrap_or(self.id)
    }
}

/// One kind of cache, as the first CPU sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cache {
    /// 1 is the nearest.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// Size of one.
    pub bytes: u64,
    /// How many there are; `None` if the system doesn't say who shares one.
    pub count: Option<usize>,
}

/// A NUMA node with CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its number.
    pub id: usize,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Its memory.
    pub total_bytes: Option<u64>,
    /// What of it is free or holds pages of files.
    pub available_bytes: Option<u64>,
}

/// The cores of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Topology {
    /// Online CPUs by number; empty if nothing is known.
    pub cpus: Vec<LogicalCpu>,
    /// Caches, nearest first.
    pub caches: Vec<Cache>,
    /// NUMA nodes with CPUs, by number; empty if nothing is known.
    pub nodes: Vec<Node>,
    /// Frequency governor of the first CPU.
    pub governor: Option<String>,
    /// Who sets the frequency of the first CPU.
    pub scaling_driver: Option<String>,
}

impl Topology {
    pub(super) fn read(root: &Root) -> Topology {
        let mut cpus: Vec<LogicalCpu> = online(root)
            .iter()
            .flat_map(CpuSet::iter)
            .map(|id| cpu(root, id))
            .collect();
        mark_kinds(root, &mut cpus);
        let nodes = nodes(root);
        for cpu in &mut cpus {
            cpu.node = nodes
                .iter()
                .find(|node| node.cpus.contains(cpu.id))
                .map(|node| node.id);
        }
        Topology {
            caches: caches(root, &cpus),
            nodes,
            governor: cpus.first().and_then(|cpu| {
                root.text(format!("{CPUS}/cpu{}/cpufreq/scaling_governor", cpu.id))
            }),
            scaling_driver: cpus
                .first()
                .and_then(|cpu| root.text(format!("{CPUS}/cpu{}/cpufreq/scaling_driver", cpu.id))),
            cpus,
        }
    }

    /// Online CPUs, if known.
    pub(crate) fn online(&self) -> Option<CpuSet> {
        Some(self.cpus.iter().map(|cpu| cpu.id).collect::<CpuSet>()).filter(|set| !set.is_empty())
    }

    /// Physical cores; `None` if no siblings are known.
    pub(crate) fn physical_cores(&self) -> Option<usize> {
        self.cpus.iter().any(|cpu| cpu.siblings.is_some()).then(|| {
            let cores: BTreeSet<usize> = self.cpus.iter().map(LogicalCpu::core).collect();
            cores.len()
        })
    }

    /// NUMA nodes with CPUs; `None` if unknown.
    pub(crate) fn numa_nodes(&self) -> Option<usize> {
        Some(self.nodes.len()).filter(|n| *n > 0)
    }

    /// Highest clock of any core.
    pub(crate) fn max_khz(&self) -> Option<u64> {
        self.cpus.iter().filter_map(|cpu| cpu.max_khz).max()
    }

    /// Sockets; `None` if unknown.
    pub(crate) fn packages(&self) -> Option<usize> {
        let packages: BTreeSet<usize> = self.cpus.iter().filter_map(|cpu| cpu.package).collect();
        Some(packages.len()).filter(|n| *n > 0)
    }

    /// Some physical core has more than one logical CPU; `None` if no siblings are known.
    pub(crate) fn smt(&self) -> Option<bool> {
        let siblings = self.cpus.iter().filter_map(|cpu| cpu.siblings.as_ref());
        siblings.map(|set| set.len() > 1).reduce(|a, b| a || b)
    }

    /// Both kinds of core are there.
    pub(crate) fn hybrid(&self) -> bool {
        self.cpus.iter().any(|cpu| cpu.kind == CoreKind::Efficiency)
    }
}

fn online(root: &Root) -> Option<CpuSet> {
    let listed = root.cpus(format!("{CPUS}/online"));
    listed.or_else(|| processors_in_cpuinfo(root))
}

fn processors_in_cpuinfo(root: &Root) -> Option<CpuSet> {
    let info = root.text("/proc/cpuinfo")?;
    let numbers = info.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "processor").then(|| value.trim().parse().ok())?
    });
    Some(numbers.collect::<CpuSet>()).filter(|set| !set.is_empty())
}

fn cpu(root: &Root, id: usize) -> LogicalCpu {
    let at = format!("{CPUS}/cpu{id}");
    let siblings = root
        .cpus(format!("{at}/topology/core_cpus_list"))
        .or_else(|| root.cpus(format!("{at}/topology/thread_siblings_list")));
    LogicalCpu {
        id,
        package: root.number(format!("{at}/topology/physical_package_id")),
        siblings: siblings.filter(|set| set.contains(id)),
        kind: CoreKind::Performance,
        capacity: root.number(format!("{at}/cpu_capacity")),
        max_khz: root.number(format!("{at}/cpufreq/cpuinfo_max_freq")),
        node: None,
    }
}

/// Intel names its kinds; elsewhere capacity decides, then the highest clock.
fn mark_kinds(root: &Root, cpus: &mut [LogicalCpu]) {
    if let Some(atoms) = root.cpus("/sys/devices/cpu_atom/cpus") {
        return mark_efficient(cpus, |cpu| atoms.contains(cpu.id));
    }
    if let Some(below) = share_of_highest(
        cpus,
        |cpu| cpu.capacity.map(f64::from),
        EFFICIENT_BELOW_CAPACITY,
    ) {
        return mark_efficient(cpus, |cpu| {
            cpu.capacity.is_some_and(|c| f64::from(c) < below)
        });
    }
    if let Some(below) = share_of_highest(
        cpus,
        |cpu| cpu.max_khz.map(|k| k as f64),
        EFFICIENT_BELOW_CLOCK,
    ) {
        mark_efficient(cpus, |cpu| cpu.max_khz.is_some_and(|k| (k as f64) < below));
    }
}

fn mark_efficient(cpus: &mut [LogicalCpu], is: impl Fn(&LogicalCpu) -> bool) {
    for cpu in cpus {
        if is(cpu) {
            cpu.kind = CoreKind::Efficiency;
        }
    }
}

/// `None` unless every CPU has the quantity.
fn share_of_highest(
    cpus: &[LogicalCpu],
    of: impl Fn(&LogicalCpu) -> Option<f64>,
    share: f64,
) -> Option<f64> {
    let all: Option<Vec<f64>> = cpus.iter().map(of).collect();
    all?.into_iter()
        .reduce(f64::max)
        .map(|highest| highest * share)
}

/// NUMA nodes that have CPUs. Nodes of memory alone (CXL, high-bandwidth memory) have an empty list.
fn nodes(root: &Root) -> Vec<Node> {
    let directory = "/sys/devices/system/node";
    let mut nodes: Vec<Node> = root
        .names(directory)
        .iter()
        .filter_map(|name| {
            let id = name.strip_prefix("node")?.parse().ok()?;
            let cpus = root.cpus(format!("{directory}/{name}/cpulist"))?;
            let info = root
                .text(format!("{directory}/{name}/meminfo"))
                .unwrap_or_default();
            let entry = |entry: &str| node_entry_bytes(&info, entry);
            Some(Node {
                id,
                cpus,
                total_bytes: entry("MemTotal:"),
                available_bytes: entry("MemFree:")
                    .map(|free| free + entry("FilePages:").unwrap_or(0)),
            })
        })
        .collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// `Node 0 MemTotal:       65536000 kB`
fn node_entry_bytes(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find(|line| line.contains(name))?;
    let (_, value) = line.split_once(name)?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn caches(root: &Root, cpus: &[LogicalCpu]) -> Vec<Cache> {
    let Some(first) = cpus.first() else {
        return Vec::new();
    };
    let directory = format!("{CPUS}/cpu{}/cache", first.id);
    let indices = root
        .names(&directory)
        .into_iter()
        .filter(|name| name.starts_with("index"));
    let mut caches: Vec<Cache> = indices
        .filter_map(|index| cache(root, &directory, &index, cpus))
        .collect();
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

fn cache(root: &Root, directory: &str, index: &str, cpus: &[LogicalCpu]) -> Option<Cache> {
    let groups: Option<BTreeSet<String>> = cpus
        .iter()
        .map(|cpu| {
            root.text(format!(
                "{CPUS}/cpu{}/cache/{index}/shared_cpu_list",
                cpu.id
            ))
        })
        .collect();
    Some(Cache {
        level: root.number(format!("{directory}/{index}/level"))?,
        kind: root.text(format!("{directory}/{index}/type"))?,
        bytes: size_bytes(&root.text(format!("{directory}/{index}/size"))?)?,
        count: groups.map(|groups| groups.len()),
    })
}

/// `48K`, `2M` or plain bytes.
fn size_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1 << 10),
        None => text
            .strip_suffix('M')
            .map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
