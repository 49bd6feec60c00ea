//! Facts about this machine: processor, topology, limits, memory. Reads, never decides.
//!
//! Everything is read through a [`Root`], so that a directory tree can stand in for a machine nobody here owns. What
//! can't be read is `None`, never a guess.

pub(crate) mod cgroup;
pub(crate) mod cpu;
pub(crate) mod cpuset;
pub(crate) mod memory;
pub(crate) mod topology;

use std::path::{Path, PathBuf};

use bitnet_kernels::Kernel;

pub(crate) use cgroup::Limits;
pub(crate) use cpu::Cpu;
pub(crate) use cpuset::CpuSet;
pub(crate) use memory::Memory;
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
    /// What says that this is a container, such as `/.dockerenv`.
    pub container: Option<String>,
    /// Kernels this CPU runs, best first.
    pub kernels: Vec<Kernel>,
}

impl Host {
    /// This machine.
    pub(crate) fn detect() -> Host {
        let root = Root::live();
        let mut host = Host::read(&root);
        host.affinity = affinity_of_this_process().or(host.affinity);
        host.cpu.add_cpuid();
        host
    }

    /// The machine described by the tree under `root`; kernels are those of the CPU that runs this code.
    pub(crate) fn read(root: &Root) -> Host {
        Host {
            cpu: Cpu::read(root),
            topology: Topology::read(root),
            affinity: status_affinity(root),
            limits: Limits::read(root),
            memory: Memory::read(root),
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

/// The directory that stands for `/`.
#[derive(Debug, Clone)]
pub(crate) struct Root(PathBuf);

impl Root {
    /// The running system.
    pub(crate) fn live() -> Root {
        Root(PathBuf::from("/"))
    }

    /// A tree that stands in for one.
    #[cfg(test)]
    pub(crate) fn at(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    /// A file's text without white space around it; `None` if there is no such file or it can't be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read(self.path(path)).ok()?;
        Some(
            String::from_utf8_lossy(&text)
                .trim_matches(['\0', ' ', '\n', '\t'])
                .to_owned(),
        )
    }

    /// A file's number.
    pub(crate) fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file's list of CPUs, such as `0-3,6`.
    pub(crate) fn cpus(&self, path: impl AsRef<Path>) -> Option<CpuSet> {
        self.text(path)?.parse().ok()
    }

    /// Whether there is such a file or directory.
    pub(crate) fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// Names in a directory, sorted; empty if there is no such directory.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
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
