//! Who gets what: CPUs, threads, memory and ports of each node's server. Pure.

use std::collections::BTreeSet;
use std::fmt;

use crate::host::topology::{LogicalCpu, Node};
use crate::host::{CpuSet, Host};
use crate::settings::{Affinity, Setting, Settings, Source};
use crate::supervise::state::Failure;

/// Less memory than this can't be asked for.
const LEAST_BYTES: u64 = 64 << 20;

/// What one server gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    /// Number of the node; `None` where no nodes are known.
    pub(super) node: Option<usize>,
    /// Its CPUs, as far as we may use them.
    pub(super) cpus: CpuSet,
    /// Threads, where a CPU quota is divided.
    pub(super) threads: Option<usize>,
    /// Memory to plan with; `None` if the system doesn't say.
    pub(super) memory_bytes: Option<u64>,
    /// HTTP port; 0 is any.
    pub(super) port: u16,
    /// Port of the agent check, if there is one; 0 is any.
    pub(super) agent_port: Option<u16>,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(node) = self.node else {
            return f.write_str("all CPUs allowed are of one NUMA node");
        };
        write!(f, "NUMA node {node}: CPUs {}", self.cpus)?;
        if let Some(threads) = self.threads {
            write!(f, ", {threads} threads (a share of the CPU quota)")?;
        }
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {} MB", bytes >> 20)?;
        }
        match self.port {
            0 => f.write_str(", any port"),
            port => write!(f, ", port {port}"),
        }
    }
}

impl Share {
    /// The settings as this server will read them.
    pub(super) fn planned_with(&self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        if self.node.is_none() {
            return settings;
        }
        if let Affinity::Cpus(_) = settings.cpu_affinity.value {
            settings.cpu_affinity.value = Affinity::Cpus(self.cpus.clone());
        }
        if self.threads.is_some() {
            settings.threads = by_flag(self.threads, "--threads");
        }
        if self.memory_bytes.is_some() {
            settings.memory_bytes = by_flag(self.memory_bytes, "--memory");
        }
        settings
    }

    /// The flags that say so, behind those that were given.
    pub(super) fn flags(&self, settings: &Settings) -> Vec<String> {
        let mut flags = vec![format!("--port={}", self.port)];
        if let Some(port) = self.agent_port {
            flags.push(format!("--agent-check-port={port}"));
        }
        if let Affinity::Cpus(_) = settings.cpu_affinity.value {
            flags.push(format!("--cpu-affinity={}", self.cpus));
        }
        if let Some(threads) = self.threads {
            flags.push(format!("--threads={threads}"));
        }
        if let Some(bytes) = self.memory_bytes {
            flags.push(format!("--memory={}", bytes >> 20));
        }
        flags
    }
}

fn by_flag<T>(value: T, flag: &str) -> Setting<T> {
    Setting {
        value,
        source: Source::Flag(flag.to_owned()),
    }
}

/// A share for each node that has CPUs for us, in the order of the nodes; never empty. One alone where there are not several.
///
/// # Errors
/// When the settings don't allow several servers, or name CPUs that none of the nodes has.
pub(super) fn shares(host: &Host, settings: &Settings) -> Result<Vec<Share>, Failure> {
    if settings.external.exec.value {
        return Err(Failure {
            reason: "`--exec` becomes one engine, `--per-node` starts several servers".to_owned(),
            hint: Some("leave one of them out".to_owned()),
        });
    }
    let nodes = usable(host, settings);
    if nodes.len() < 2 {
        return Ok(vec![Share {
            node: None,
            cpus: CpuSet::default(),
            threads: None,
            memory_bytes: None,
            port: settings.port.value,
            agent_port: settings.agent_check_port.value,
        }]);
    }
    let ports = ports(settings, nodes.len())?;
    let cores: usize = nodes.iter().map(|(_, cpus)| cores(host, cpus)).sum();
    let quota = host.limits.quota.as_ref().map(|quota| quota.threads());
    let quota = quota.filter(|threads| *threads < cores && settings.threads.value.is_none());
    let limit = host.limits.memory.as_ref().map(|limit| limit.bytes);
    let count = nodes.len();
    Ok(nodes
        .into_iter()
        .zip(ports)
        .map(|((node, cpus), (port, agent_port))| {
            let most = [
                node.available_bytes.map(left_of),
                limit.map(|bytes| left_of(bytes / count as u64)),
                settings.memory_bytes.value,
            ];
            Share {
                node: Some(node.id),
                threads: quota
                    .map(|threads| (threads / count).clamp(1, cores_at_least(host, &cpus))),
                memory_bytes: most
                    .into_iter()
                    .flatten()
                    .min()
                    .map(|bytes| bytes.max(LEAST_BYTES)),
                cpus,
                port,
                agent_port,
            }
        })
        .collect())
}

/// Without a twentieth for others.
fn left_of(bytes: u64) -> u64 {
    bytes / 20 * 19
}

/// The nodes with CPUs that we may use and that were asked for.
fn usable<'a>(host: &'a Host, settings: &Settings) -> Vec<(&'a Node, CpuSet)> {
    let mut ours = host.allowed_cpus().unwrap_or_default();
    if let Affinity::Cpus(wanted) = &settings.cpu_affinity.value {
        ours = ours.intersection(wanted);
    }
    let near = |node: &'a Node| (node, node.cpus.intersection(&ours));
    let nodes = host.topology.nodes.iter().map(near);
    nodes.filter(|(_, cpus)| !cpus.is_empty()).collect()
}

fn cores(host: &Host, cpus: &CpuSet) -> usize {
    let known = host.topology.cpus.iter();
    let here = known.filter(|cpu| cpus.contains(cpu.id));
    here.map(LogicalCpu::core).collect::<BTreeSet<_>>().len()
}

fn cores_at_least(host: &Host, cpus: &CpuSet) -> usize {
    cores(host, cpus).max(1)
}

/// Ports of each server: one for all where the system shares connections out, else one after another.
fn ports(settings: &Settings, count: usize) -> Result<Vec<(u16, Option<u16>)>, Failure> {
    if let Some(path) = settings
        .hosts
        .value
        .iter()
        .find(|host| host.ends_with(".sock"))
    {
        return Err(Failure {
            reason: format!("`--per-node` can't share the socket `{path}` among {count} servers"),
            hint: Some("listen on an address: `--host 127.0.0.1`".to_owned()),
        });
    }
    let (first, shared) = (settings.port.value, settings.reuse_port.value);
    if shared && first == 0 {
        return Err(Failure {
            reason: "`--reuse-port` needs a port that all servers know, `--port 0` takes any"
                .to_owned(),
            hint: Some("name one, such as `--port 8081`".to_owned()),
        });
    }
    let counted = |first: u16, name: &str| {
        let ports = (0..count).map(move |n| match first {
            0 => Some(0),
            _ => first.checked_add(u16::try_from(n).ok()?),
        });
        let ports: Option<Vec<u16>> = ports.collect();
        ports.ok_or_else(|| Failure {
            reason: format!(
                "{count} servers need {count} ports from {first} on, the last one is 65535"
            ),
            hint: Some(format!("choose a lower one with `--{name}`")),
        })
    };
    let own = match shared {
        true => vec![first; count],
        false => counted(first, "port")?,
    };
    let agents = match settings.agent_check_port.value {
        Some(first) => counted(first, "agent-check-port")?
            .into_iter()
            .map(Some)
            .collect(),
        None => vec![None; count],
    };
    Ok(own.into_iter().zip(agents).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::{MemoryLimit, Quota};
    use crate::host::tests::host;
    use crate::settings::tests::settings;

    fn told(host: &Host, said: &[(&'static str, &str)]) -> Vec<String> {
        let shares = shares(host, &settings(said, &[])).unwrap();
        shares.iter().map(ToString::to_string).collect()
    }

    fn refused(said: &[(&'static str, &str)]) -> String {
        let failure = shares(&host("two-sockets-2x16"), &settings(said, &[])).unwrap_err();
        assert!(failure.hint.is_some());
        failure.reason
    }

    #[test]
    fn each_node_has_cpus_memory_and_a_port() {
        let two = host("two-sockets-2x16");
        assert_eq!(
            told(&two, &[]),
            [
                "NUMA node 0: CPUs 0-15,32-47, 147509 MB, port 8081",
                "NUMA node 1: CPUs 16-31,48-63, 166064 MB, port 8082",
            ]
        );
        let shared = [
            ("reuse-port", "on"),
            ("agent-check-port", "9000"),
            ("memory", "9000"),
        ];
        let shares = shares(&two, &settings(&shared, &[])).unwrap();
        let flags: Vec<_> = shares
            .iter()
            .map(|share| share.flags(&settings(&shared, &[])))
            .collect();
        assert_eq!(
            flags[0],
            ["--port=8081", "--agent-check-port=9000", "--memory=9000"]
        );
        assert_eq!(
            flags[1],
            ["--port=8081", "--agent-check-port=9001", "--memory=9000"]
        );
        assert_eq!(
            told(&two, &[("cpu-affinity", "0-3,16-19"), ("port", "0")]),
            [
                "NUMA node 0: CPUs 0-3, 147509 MB, any port",
                "NUMA node 1: CPUs 16-19, 166064 MB, any port",
            ]
        );
    }

    #[test]
    fn quota_and_memory_limit_are_divided() {
        let mut two = host("two-sockets-2x16");
        two.limits.quota = Some(Quota {
            quota_us: 2_400_000,
            period_us: 100_000,
            at: "/sys/fs/cgroup/cpu.max".into(),
        });
        two.limits.memory = Some(MemoryLimit {
            bytes: 64 << 30,
            at: "/sys/fs/cgroup/memory.max".into(),
        });
        let lines = told(&two, &[]);
        assert_eq!(
            lines[1],
            "NUMA node 1: CPUs 16-31,48-63, 12 threads (a share of the CPU quota), 31129 MB, port 8082"
        );
        assert!(!told(&two, &[("threads", "9")])[0].contains("threads"));
        two.limits.quota = Some(Quota {
            quota_us: 100_000,
            period_us: 100_000,
            at: "/sys/fs/cgroup/cpu.max".into(),
        });
        assert!(told(&two, &[])[0].contains(", 1 threads ("));
    }

    #[test]
    fn one_node_is_one_server() {
        for machine in ["desktop-8c16t", "raspberry-pi-5", "cloud-vm-4"] {
            let lines = told(&host(machine), &[]);
            assert_eq!(
                lines,
                ["all CPUs allowed are of one NUMA node"],
                "{machine}"
            );
        }
        let near = told(&host("two-sockets-2x16"), &[("cpu-affinity", "0-3")]);
        assert_eq!(near, ["all CPUs allowed are of one NUMA node"]);
        let exec = settings(&[("exec", "on"), ("engine", "/bin/true")], &[]);
        assert!(shares(&host("desktop-8c16t"), &exec).is_err());
    }

    #[test]
    fn what_several_servers_cannot_share_is_refused() {
        assert!(refused(&[("host", "/run/a.sock")]).contains("/run/a.sock"));
        assert!(refused(&[("reuse-port", "on"), ("port", "0")]).contains("--reuse-port"));
        assert!(refused(&[("port", "65535")]).contains("65535"));
        assert!(refused(&[("exec", "on"), ("engine", "/bin/true")]).contains("--exec"));
    }
}
