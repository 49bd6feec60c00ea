//! What could be better, and the remedy: machine, limits, settings, environment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bitnet_model::protocol::ModelSource;
use nix::sched::{CpuSet as Mask, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::host::{Host, Root, cgroup, storage};
use crate::plan::{Warning, mb};
use crate::settings::{Environment, Settings};

/// Share of the periods with throttling from which on answers suffer.
const THROTTLED_SHARE: f64 = 0.05;
/// Fewer periods (of 0.1 s) tell nothing.
const THROTTLED_PERIODS: u64 = 50;
/// Share of the memory limit in use from which on the next request may be one too many.
const MEMORY_SHARE: f64 = 0.9;
/// Swap in use below this is the system's own tidiness.
const SWAP_BYTES: u64 = 64 << 20;
/// Variables by which OpenMP programs are placed on CPUs.
const OPENMP_PLACES: &[&str] = &[
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "OMP_PLACES",
    "OMP_PROC_BIND",
];

/// What the machine could do better.
pub(super) fn of_host(host: &Host, root: &Root) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |warning: Option<Warning>| warnings.extend(warning);
    warn(emulated(host));
    warn(no_avx2(host));
    warn(throttled(host));
    warn(fraction_of_a_cpu(host));
    warn(heat(host));
    warn(governor(host));
    warn(shared_siblings(host));
    warn(mask_outside_cpuset(host));
    warn(several_nodes(host));
    warn(swap_in_use(host));
    warn(near_the_memory_limit(host, root));
    warn(no_huge_pages(host));
    warn(pages_set_aside(host));
    warnings
}

fn emulated(host: &Host) -> Option<Warning> {
    let emulator = host.cpu.emulator.as_ref()?;
    Some(Warning::new(
        format!("this CPU is emulated by {emulator}"),
        "everything is many times slower than on the real one; enable hardware virtualisation",
    ))
}

fn no_avx2(host: &Host) -> Option<Warning> {
    (host.cpu.arch == "x86_64" && host.cpu.has("avx2") == Some(false)).then(|| {
        Warning::new(
            "this CPU, or what the virtual machine shows of it, has no AVX2",
            "plain code is used, several times slower; in a virtual machine, pass the host's CPU through",
        )
    })
}

fn throttled(host: &Host) -> Option<Warning> {
    let counters = host.throttle.quota.as_ref()?;
    let share = counters.share_since(&Default::default(), THROTTLED_PERIODS)?;
    (share >= THROTTLED_SHARE).then(|| {
        Warning::new(
            format!(
                "the CPU quota stopped this container in {:.0} % of all periods, for {:.0} s in all",
                share * 100.0,
                counters.throttled.as_secs_f64()
            ),
            "raise the CPU limit to whole CPUs or lower `--threads`; other programs in the container share the quota",
        )
    })
}

fn fraction_of_a_cpu(host: &Host) -> Option<Warning> {
    let quota = host.limits.quota.as_ref()?;
    (quota.cpus().fract() > 0.01).then(|| {
        Warning::new(
            format!("a CPU quota of {quota} is no whole number of CPUs"),
            match quota.cpus() < 1.0 {
                true => "one thread runs and is stopped in every period; give at least one CPU",
                false => "threads are rounded down to stay unthrottled; give whole CPUs, or better a cpuset",
            },
        )
    })
}

fn heat(host: &Host) -> Option<Warning> {
    let events = host.throttle.thermal_events.filter(|n| *n > 0)?;
    Some(Warning::new(
        format!("heat lowered the clocks {events} times since the machine started"),
        "clean the fans, or lower `--threads`: fewer hot cores can be faster ones",
    ))
}

/// `powersave` of these drivers follows the load; of others it means the lowest clock.
fn governor(host: &Host) -> Option<Warning> {
    let topology = &host.topology;
    let driver = topology.scaling_driver.as_deref();
    let follows_load = match driver {
        Some(driver) => {
            driver.starts_with("intel_pstate")
                || driver.starts_with("amd-pstate-epp")
                || driver.starts_with("amd_pstate_epp")
        }
        None => host.cpu.vendor.as_deref() == Some("GenuineIntel"),
    };
    (topology.governor.as_deref() == Some("powersave") && !follows_load).then(|| {
        Warning::new(
            "the frequency governor is powersave",
            "`cpupower frequency-set -g performance` lets the cores run at full clock",
        )
    })
}

/// A core of which only one of two logical CPUs is ours: whoever runs on the other halves it.
fn shared_siblings(host: &Host) -> Option<Warning> {
    let allowed = host.allowed_cpus()?;
    let online = host.topology.online()?;
    let shared: Vec<String> = host
        .topology
        .cpus
        .iter()
        .filter(|cpu| allowed.contains(cpu.id))
        .filter(|cpu| {
            let siblings = cpu.siblings.iter().flat_map(|set| set.iter());
            siblings
                .filter(|id| online.contains(*id))
                .any(|id| !allowed.contains(id))
        })
        .map(|cpu| cpu.id.to_string())
        .collect();
    (!shared.is_empty()).then(|| {
        Warning::new(
            format!(
                "CPUs {} share their physical cores with CPUs that are not ours",
                shared.join(",")
            ),
            "allow whole cores, such as `--cpuset-cpus 2,10` where CPU 10 is the sibling of 2 (`lscpu -e` shows them)",
        )
    })
}

fn mask_outside_cpuset(host: &Host) -> Option<Warning> {
    let (mask, cpuset) = (host.affinity.as_ref()?, host.limits.cpuset.as_ref()?);
    let outside = mask.difference(cpuset);
    (!outside.is_empty()).then(|| {
        Warning::new(
            format!("the affinity mask {mask} reaches beyond the control group's CPUs {cpuset}"),
            "only CPUs in both count; CPUs outside the group are ignored by the system",
        )
    })
}

fn several_nodes(host: &Host) -> Option<Warning> {
    let allowed = host.allowed_cpus()?;
    let nodes = host.topology.nodes.iter();
    let ours = nodes.filter(|node| !node.cpus.intersection(&allowed).is_empty());
    let count = ours.count();
    (count > 1).then(|| {
        Warning::new(
            format!("{count} NUMA nodes: memory of another node is slower"),
            "for more requests at a time start one server per node: `bitnet-launch serve --per-node`",
        )
    })
}

fn swap_in_use(host: &Host) -> Option<Warning> {
    let used = host
        .memory
        .swap_used_bytes
        .filter(|used| *used > SWAP_BYTES)?;
    Some(Warning::new(
        format!("{} MB of swap are in use", mb(used)),
        "weights that are swapped out stop the answers; free memory, or serve with `--mlock`",
    ))
}

fn near_the_memory_limit(host: &Host, root: &Root) -> Option<Warning> {
    let limit = host.limits.memory.as_ref()?;
    let used = cgroup::memory_used(root, &host.limits)?;
    (used as f64 >= MEMORY_SHARE * limit.bytes as f64).then(|| {
        Warning::new(
            format!(
                "{} of {} MB under the limit in {} are in use",
                mb(used),
                mb(limit.bytes),
                limit.at.display()
            ),
            "what goes beyond ends in a kill; raise the limit, or lower `--parallel` or `--ctx-size`",
        )
    })
}

fn no_huge_pages(host: &Host) -> Option<Warning> {
    (host.memory.huge_pages.as_deref() == Some("never")).then(|| {
        Warning::new(
            "transparent huge pages are off",
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` speeds up reading the weights",
        )
    })
}

fn pages_set_aside(host: &Host) -> Option<Warning> {
    let (_, free) = host.memory.reserved_pages?;
    let bytes = free * host.memory.reserved_page_bytes?;
    (bytes > 256 << 20).then(|| {
        Warning::new(
            format!("{} MB are set aside as huge pages that nobody uses", mb(bytes)),
            "this program can't use them (it asks for transparent ones); `sysctl vm.nr_hugepages=0` gives them back",
        )
    })
}

/// What the settings could do better.
pub(super) fn of_settings(settings: &Settings, root: &Root) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if settings.model.value == ModelSource::Demo {
        warnings.push(Warning::new(
            "no model is named: the tiny demo model would be served",
            "`bitnet-launch -m FILE.gguf`, or MODEL_PATH",
        ));
    }
    if let Some(path) = settings
        .model_path()
        .and_then(|path| path.canonicalize().ok())
        && let Some(kind) =
            storage::file_system(root, &path).filter(|kind| storage::is_network(kind))
    {
        warnings.push(Warning::new(
            format!("the model lies on a network disk ({kind})"),
            "its first tokens wait for the network, and so does everything after memory ran short; copy it to a local disk, or serve with `--mlock`",
        ));
    }
    let open = settings.hosts.value.iter().any(|host| is_open(host));
    if open && settings.api_keys.value.0.is_empty() {
        warnings.push(Warning::new(
            format!(
                "open to the network without a key (address from {})",
                settings.hosts.source
            ),
            "set LLAMA_API_KEY or `--api-key-file`, or listen on 127.0.0.1",
        ));
    }
    warnings
}

/// Reachable from elsewhere, as far as the address tells.
fn is_open(host: &str) -> bool {
    if host.ends_with(".sock") || host == "localhost" {
        return false;
    }
    host.parse::<IpAddr>()
        .map_or(true, |address| !address.is_loopback())
}

/// What can only be seen from inside: variables nobody reads, and whether threads stay where they are put.
pub(super) fn of_this_process(environment: &Environment) -> Vec<Warning> {
    let mut warnings = unread_placement(environment);
    if pinning_works() == Some(false) {
        warnings.push(Warning::new(
            "this system takes CPU affinity and ignores it, as gVisor and some sandboxes do",
            "threads wander between CPUs; choose another container runtime, or expect less",
        ));
    }
    warnings
}

fn unread_placement(environment: &BTreeMap<String, String>) -> Vec<Warning> {
    let set = OPENMP_PLACES.iter().filter(|name| {
        environment
            .get(**name)
            .is_some_and(|value| !value.is_empty())
    });
    set.map(|name| {
        Warning::new(
            format!("{name} is set and ignored: this program does not use OpenMP"),
            "say the CPUs with CPU_AFFINITY or `--cpu-affinity`",
        )
    })
    .collect()
}

/// Puts a thread of its own on one CPU after another and looks where it runs; `None` if that is refused.
fn pinning_works() -> Option<bool> {
    let try_all = || {
        let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).ok()?;
        let cpus = (0..Mask::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut works = None;
        for cpu in cpus.take(4) {
            let mut mask = Mask::new();
            mask.set(cpu).ok()?;
            sched_setaffinity(Pid::from_raw(0), &mask).ok()?;
            works = Some(works.unwrap_or(true) && sched_getcpu().ok()? == cpu);
        }
        works
    };
    std::thread::spawn(try_all).join().ok()?
}
