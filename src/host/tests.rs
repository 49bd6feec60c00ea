//! Machines nobody here owns, from `tests/fixtures/host/`: one text file per machine, `=== PATH` before each file's text.

use std::path::{Path, PathBuf};

use super::topology::CoreKind;
use super::*;

/// The machine of a fixture.
pub(crate) fn host(name: &str) -> Host {
    let path = format!(
        "{}/tests/fixtures/host/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    Host::read(&Root::open(Path::new(&path)).unwrap_or_else(|error| panic!("{path}: {error}")))
}

fn write(tree: &Path, path: &str, content: &str) {
    let path = tree.join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("{content}\n")).unwrap();
}

fn shown(set: Option<CpuSet>) -> Option<String> {
    set.map(|set| set.to_string())
}

#[test]
fn desktop() {
    let host = host("desktop-8c16t");
    assert_eq!(
        host.cpu.model.as_deref(),
        Some("AMD Ryzen 7 5800X 8-Core Processor")
    );
    assert_eq!(host.cpu.vendor.as_deref(), Some("AuthenticAMD"));
    assert_eq!(host.cpu.has("avx2"), Some(true));
    assert_eq!(host.cpu.has("avx512f"), Some(false));
    assert_eq!(host.cpu.hypervisor, Some(false));
    assert_eq!(host.topology.physical_cores(), Some(8));
    assert_eq!(host.topology.cpus.len(), 16);
    assert_eq!(host.topology.smt(), Some(true));
    assert_eq!(host.topology.packages(), Some(1));
    assert_eq!(host.topology.numa_nodes(), Some(1));
    assert!(!host.topology.hybrid());
    assert_eq!(host.topology.governor.as_deref(), Some("schedutil"));
    let caches: Vec<_> = host
        .topology
        .caches
        .iter()
        .map(|c| (c.level, c.bytes, c.count))
        .collect();
    assert_eq!(caches, [(1, 32 << 10, Some(8)), (3, 32 << 20, Some(1))]);
    assert_eq!(shown(host.allowed_cpus()).as_deref(), Some("0-15"));
    assert_eq!(
        host.limits,
        Limits {
            version: Some(2),
            ..Limits::default()
        }
    );
    assert_eq!(host.memory.total_bytes, Some(32_795_248 << 10));
    assert_eq!(host.memory.available_bytes, Some(27_000_000 << 10));
    assert_eq!(host.memory.swap_used_bytes, Some(0));
    assert_eq!(host.memory.huge_pages.as_deref(), Some("madvise"));
    assert_eq!(host.container, None);
}

#[test]
fn hybrid_laptop() {
    let host = host("hybrid-6p8e");
    let small = host
        .topology
        .cpus
        .iter()
        .filter(|cpu| cpu.kind == CoreKind::Efficiency);
    assert_eq!(
        small.map(|cpu| cpu.id).collect::<Vec<_>>(),
        (12..20).collect::<Vec<_>>()
    );
    assert_eq!(host.topology.physical_cores(), Some(14));
    assert!(host.topology.hybrid());
    assert_eq!(
        host.memory.swap_used_bytes,
        Some((16_777_212 - 15_000_000) << 10)
    );
}

#[test]
fn containers_of_both_versions_say_the_same() {
    for (name, version, at) in [
        ("container-v2", 2, "/sys/fs/cgroup/cpu.max"),
        (
            "container-v1",
            1,
            "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us",
        ),
    ] {
        let host = host(name);
        assert_eq!(host.limits.version, Some(version), "{name}");
        let quota = host.limits.quota.as_ref().unwrap();
        assert_eq!((quota.cpus(), quota.threads()), (1.5, 1), "{name}");
        assert_eq!(quota.at, PathBuf::from(at), "{name}");
        assert_eq!(
            host.limits.memory.as_ref().map(|m| m.bytes),
            Some(2 << 30),
            "{name}"
        );
        assert_eq!(
            shown(host.limits.cpuset.clone()).as_deref(),
            Some("2-5"),
            "{name}"
        );
        assert_eq!(shown(host.allowed_cpus()).as_deref(), Some("2-5"), "{name}");
        assert_eq!(host.container.as_deref(), Some("/.dockerenv"), "{name}");
        assert_eq!(host.cpu.hypervisor, Some(true), "{name}");
    }
}

#[test]
fn raspberry_pi() {
    let host = host("raspberry-pi-5");
    assert_eq!(
        host.cpu.model.as_deref(),
        Some("Raspberry Pi 5 Model B Rev 1.0")
    );
    assert_eq!(host.cpu.vendor.as_deref(), Some("ARM"));
    assert_eq!(host.cpu.has("asimddp"), Some(true));
    assert_eq!(host.topology.physical_cores(), Some(4));
    assert_eq!(host.topology.smt(), Some(false));
    assert!(!host.topology.hybrid());
    assert_eq!(host.topology.numa_nodes(), None);
    assert_eq!(host.memory.huge_pages, None);
}

#[test]
fn two_sockets() {
    let host = host("two-sockets-2x16");
    let topology = &host.topology;
    assert_eq!(topology.physical_cores(), Some(32));
    assert_eq!((topology.cpus.len(), topology.packages()), (64, Some(2)));
    assert_eq!(topology.numa_nodes(), Some(2));
    assert_eq!(topology.nodes[1].cpus.to_string(), "16-31,48-63");
    assert_eq!(topology.nodes[1].total_bytes, Some(197_632_000 << 10));
    assert_eq!(topology.nodes[1].available_bytes, Some(179_000_000 << 10));
    assert_eq!(topology.cpus[40].node, Some(0));
    assert_eq!(topology.max_khz(), Some(3_711_914));
    assert_eq!(topology.caches[0].count, Some(8));
    assert_eq!(host.cpu.microcode.as_deref(), Some("0xa101148"));
    assert_eq!(host.energy.as_deref(), Ok("powercap RAPL, 2 packages"));
    assert_eq!(host.memory.lock_limit_bytes, Some(u64::MAX));
    assert_eq!(host.memory.reserved_pages, Some((1024, 1024)));
    assert_eq!(host.cpu.hypervisor, Some(false));
}

#[test]
fn cloud_machine() {
    let host = host("cloud-vm-4");
    assert_eq!(host.topology.physical_cores(), Some(2));
    assert_eq!(host.topology.smt(), Some(true));
    assert_eq!(host.cpu.hypervisor, Some(true));
    assert_eq!(
        host.cpu.hypervisor_name.as_deref(),
        Some("Amazon EC2 m7i.xlarge")
    );
    assert_eq!(host.cpu.has("amx_int8"), Some(true));
    assert_eq!(host.topology.governor, None);
    assert_eq!(host.limits.memory, None);
    assert!(host.energy.unwrap_err().starts_with("no energy counter"));
}

#[test]
fn eighty_arm_cores() {
    let host = host("ampere-altra-80");
    assert_eq!(host.cpu.arch, "aarch64");
    assert_eq!(host.topology.physical_cores(), Some(80));
    assert!(!host.topology.hybrid());
    assert_eq!(host.cpu.hypervisor, None);
    let source = host.energy.unwrap();
    assert_eq!(source, "hwmon altra_hwmon, power read every moment");
}

#[test]
fn the_machine_this_was_made_on() {
    let host = host("this-machine");
    assert_eq!(host.topology.physical_cores(), Some(2));
    assert_eq!(host.cpu.has("avx512_vnni"), Some(true));
    assert_eq!(host.limits.version, Some(1));
    assert_eq!(host.limits.quota, None);
    assert_eq!(shown(host.allowed_cpus()).as_deref(), Some("0-1"));
    assert!(host.energy.is_err());
}

#[test]
fn counters_of_limits() {
    let host = host("container-v2");
    let counters = host.throttle.quota.unwrap();
    assert_eq!((counters.periods, counters.throttled_periods), (8000, 3200));
    assert_eq!(counters.throttled.as_secs(), 190);
    assert_eq!(host.limits.swap.map(|limit| limit.bytes), Some(0));
}

#[test]
fn processes_killed_for_want_of_memory_are_counted() {
    let count = |files: &str| oom_kills(&Root::of_report(files));
    let v2 = "=== /proc/self/cgroup\n0::/app\n=== /proc/self/mountinfo\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n=== /sys/fs/cgroup/app/memory.events\nlow 0\noom 4\noom_kill 3\n=== /proc/vmstat\nnr_free_pages 7\noom_kill 9\n";
    assert_eq!(count(v2), Some(3));
    let v1 = "=== /proc/self/cgroup\n4:memory:/app\n=== /proc/self/mountinfo\n30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n=== /sys/fs/cgroup/memory/app/memory.oom_control\noom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
    assert_eq!(count(v1), Some(2));
    assert_eq!(count("=== /proc/vmstat\noom_kill 9\n"), Some(9));
    assert_eq!(count("=== /proc/vmstat\nnr_free_pages 7\n"), None);
}

#[test]
fn big_and_little_cores_are_told_apart_by_capacity() {
    let host = host("arm-big-little");
    let small = host
        .topology
        .cpus
        .iter()
        .filter(|cpu| cpu.kind == CoreKind::Efficiency);
    assert_eq!(small.map(|cpu| cpu.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn an_empty_tree_is_all_unknown() {
    let tree = tempfile::tempdir().unwrap();
    let host = Host::read(&Root::at(tree.path()));
    assert_eq!(host.topology, Topology::default());
    assert_eq!(host.limits, Limits::default());
    assert_eq!(host.memory, Memory::default());
    assert_eq!((host.affinity.as_ref(), host.allowed_cpus()), (None, None));
    assert_eq!(
        (
            host.cpu.model.as_ref(),
            host.cpu.features.as_ref(),
            host.cpu.hypervisor
        ),
        (None, None, None)
    );
}

#[test]
fn the_tightest_limit_of_a_chain_counts_wherever_it_stands() {
    let tree = tempfile::tempdir().unwrap();
    let cgroup = "/sys/fs/cgroup";
    let mount = format!("30 23 0:26 / {cgroup} rw - cgroup2 cgroup2 rw");
    for (path, content) in [
        ("/proc/self/mountinfo", mount.as_str()),
        ("/proc/self/cgroup", "0::/pod/app/worker"),
        ("/sys/fs/cgroup/pod/cpu.max", "300000 100000"),
        ("/sys/fs/cgroup/pod/memory.max", "1000000000"),
        ("/sys/fs/cgroup/pod/app/cpu.max", "50000 20000"),
        ("/sys/fs/cgroup/pod/app/memory.high", "900000000"),
        ("/sys/fs/cgroup/pod/app/worker/cpu.max", "max 100000"),
        ("/sys/fs/cgroup/pod/app/worker/memory.max", "2000000000"),
    ] {
        write(tree.path(), path, content);
    }
    let limits = Limits::read(&Root::at(tree.path()));
    let quota = limits.quota.unwrap();
    assert_eq!((quota.cpus(), quota.threads()), (2.5, 2));
    let memory = limits.memory.unwrap();
    assert_eq!(memory.bytes, 900_000_000);
    assert_eq!(
        memory.at,
        PathBuf::from("/sys/fs/cgroup/pod/app/memory.high")
    );
}

#[test]
fn this_machine_is_read_without_panic_and_allows_something() {
    let host = Host::detect();
    assert!(!host.kernels.is_empty());
    assert!(host.allowed_cpus().is_none_or(|cpus| !cpus.is_empty()));
    assert!(!host.summary().is_empty());
}
