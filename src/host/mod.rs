//! Facts about this machine: processor, topology, limits, memory. Reads, never decides.
//!
//! Everything is read through a [`Root`], so that a directory tree can stand in for a machine nobody here owns. What
//! can't be read is `None`, never a guess.

pub(crate) mod cgroup;
pub(crate) mod cpu;
pub(crate) mod cpuset;
pub(crate) mod energy;
pub(crate) mod memory;
mod power_events;
mod root;
pub(crate) mod storage;
pub(crate) mod throttle;
pub(crate) mod topology;

use bitnet_kernels::Kernel;

pub(crate) use cgroup::{Limits, oom_kills};
pub(crate) use cpu::Cpu;
pub(crate) use cpuset::CpuSet;
pub(crate) use energy::Meter;
pub(crate) use memory::Memory;
pub(crate) use root::Root;
pub(crate) use throttle::Throttle;
pub(crate) use topology::Topology;

/// One machine, as far as it can be seen from this process.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The processor.
    pub cpu: Cpu,
    /// Cores and who shares them.
    pub topology: Topology,
    /// Logical CPUs this process may run on by its affinity mask.
    pub affinity: Option<CpuSet>,
    /// What control groups allow.
    pub limits: Limits,
    /// Memory.
    pub memory: Memory,
    /// How often this process and these cores were slowed down so far.
    pub throttle: Throttle,
    /// Where energy can be read: a source in words, or why there is none.
    pub energy: Result<String, String>,
    /// Release of the operating system's kernel.
    pub os_release: Option<String>,
    /// What says that this is a container, such as `/.dockerenv`.
    pub container: Option<String>,
    /// Kernels this CPU runs, best first.
    pub kernels: Vec<Kernel>,
}

impl Host {
    /// This machine.
    pub(crate) fn detect() -> Host {
        Host::detect_by(&Root::live())
    }

    /// This machine, read through `root`, which may keep what it reads.
    pub(crate) fn detect_by(root: &Root) -> Host {
        let mut host = Host::read(root);
        host.affinity = affinity_of_this_process().or(host.affinity);
        host.cpu.add_cpuid();
        host
    }

    /// The machine described by the tree under `root`; kernels are those of the CPU that runs this code.
    pub(crate) fn read(root: &Root) -> Host {
        let limits = Limits::read(root);
        Host {
            cpu: Cpu::read(root),
            topology: Topology::read(root),
            affinity: status_affinity(root),
            throttle: Throttle::read(root, &limits),
            limits,
            memory: Memory::read(root),
            energy: match Meter::find(root) {
                Ok(meter) => Ok(meter.source().to_owned()),
                Err(error) => Err(error.to_string()),
            },
            os_release: root.text("/proc/sys/kernel/osrelease"),
            container: container(root),
            kernels: Kernel::available(),
        }
    }

    /// Logical CPUs this process may use: affinity mask and cpuset, of those that are online. `None` if nothing is known.
    pub(crate) fn allowed_cpus(&self) -> Option<CpuSet> {
        let online = self.topology.online();
        [
            online.as_ref(),
            self.affinity.as_ref(),
            self.limits.cpuset.as_ref(),
        ]
        .into_iter()
        .flatten()
        .fold(None, |all: Option<CpuSet>, set| match all {
            None => Some(set.clone()),
            Some(all) => Some(all.intersection(set))
                .filter(|both| !both.is_empty())
                .or(Some(all)),
        })
    }

    /// The machine in one line.
    pub(crate) fn summary(&self) -> String {
        let mut parts = vec![
            self.cpu
                .model
                .clone()
                .unwrap_or_else(|| format!("unnamed {} CPU", self.cpu.arch)),
        ];
        if let Some(cores) = self.topology.physical_cores() {
            parts.push(format!(
                "{cores} physical cores, {} logical CPUs",
                self.topology.cpus.len()
            ));
        }
        if let Some(allowed) = self.allowed_cpus() {
            parts.push(format!("CPUs {allowed} allowed"));
        }
        if let Some(quota) = &self.limits.quota {
            parts.push(format!("quota of {quota}"));
        }
        if let Some(bytes) = self.memory.available_bytes {
            parts.push(format!("{} MB available", bytes >> 20));
        }
        if let Some(limit) = &self.limits.memory {
            parts.push(format!("memory limit {} MB", limit.bytes >> 20));
        }
        parts.join(", ")
    }
}

/// sched_getaffinity(2); `None` beyond the 1024 CPUs its fixed mask holds, where `/proc/self/status` still answers.
fn affinity_of_this_process() -> Option<CpuSet> {
    use nix::sched::{CpuSet as Mask, sched_getaffinity};
    let mask = sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok()?;
    Some(
        (0..Mask::count())
            .filter(|cpu| mask.is_set(*cpu).unwrap_or(false))
            .collect(),
    )
}

fn status_affinity(root: &Root) -> Option<CpuSet> {
    let status = root.text("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    line.trim().parse().ok()
}

fn container(root: &Root) -> Option<String> {
    for mark in ["/.dockerenv", "/run/.containerenv"] {
        if root.has(mark) {
            return Some(mark.to_owned());
        }
    }
    let groups = root.text("/proc/1/cgroup")?;
    let names = [
        "/docker/",
        "/docker-",
        "/kubepods",
        "/libpod",
        "/lxc",
        "/containerd",
    ];
    let name = names.iter().find(|name| groups.contains(*name))?;
    Some(format!("control group {name}"))
}

#[cfg(test)]
pub(crate) mod tests;
