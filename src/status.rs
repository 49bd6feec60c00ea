//! What `/status` shows of machine, plan and processes: the plan in words once it is made, and what `/proc` says of both
//! processes at the moment of asking.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use bitnet_model::protocol::KvType;
use bitnet_server::status::{Advice, Decision, Fact, Part, Process, Report, StatusSource, Vitals};
use nix::unistd::{SysconfVar, sysconf};

use crate::host::{CpuSet, Host, Limits, Meter, Root, Throttle};
use crate::plan::{Choice, MemoryPlan, Plan};

/// Watches the program itself.
pub(crate) struct Watch {
    planned: RwLock<Option<Planned>>,
    /// 0: none was ready yet.
    engine: AtomicU32,
    meter: Option<Mutex<Meter>>,
}

struct Planned {
    report: Report,
    limits: Limits,
}

impl Watch {
    /// Energy is counted from now on.
    pub(crate) fn new() -> Watch {
        Watch {
            planned: RwLock::new(None),
            engine: AtomicU32::new(0),
            meter: Meter::find(&Root::live()).ok().map(Mutex::new),
        }
    }

    /// Makes machine and plan known, or others in their place.
    pub(crate) fn planned(&self, host: &Host, plan: &Plan) {
        let planned = Planned {
            report: report(host, plan),
            limits: host.limits.clone(),
        };
        *self.planned.write().unwrap_or_else(PoisonError::into_inner) = Some(planned);
    }

    fn with<T>(&self, read: impl FnOnce(&Planned) -> T) -> Option<T> {
        let planned = self.planned.read().unwrap_or_else(PoisonError::into_inner);
        planned.as_ref().map(read)
    }

    /// The engine that got ready last.
    pub(crate) fn engine(&self) -> Option<u32> {
        Some(self.engine.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// An engine is ready.
    pub(crate) fn engine_is(&self, pid: u32) {
        self.engine.store(pid, Ordering::Relaxed);
    }
}

impl StatusSource for Watch {
    fn report(&self) -> Option<Report> {
        self.with(|planned| planned.report.clone())
    }

    fn vitals(&self) -> Vitals {
        let root = Root::live();
        let limits = self.with(|planned| planned.limits.clone());
        let throttle = Throttle::read(&root, &limits.unwrap_or_default());
        Vitals {
            server: process(&root, std::process::id()),
            engine: self.engine().and_then(|pid| process(&root, pid)),
            quota_throttled_us: throttle
                .quota
                .map(|quota| quota.throttled.as_micros() as u64),
            heat_throttled: throttle.thermal_events,
            energy_j: self.meter.as_ref().map(joules),
        }
    }
}

fn joules(meter: &Mutex<Meter>) -> f64 {
    meter
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .sample()
}

fn report(host: &Host, plan: &Plan) -> Report {
    let Plan {
        memory, warnings, ..
    } = plan;
    Report {
        machine: machine(host),
        plan: decisions(plan),
        memory: parts(memory),
        memory_budget_bytes: memory.budget.as_ref().map(|budget| budget.bytes),
        warnings: warnings
            .iter()
            .map(|warning| Advice {
                what: warning.what.clone(),
                todo: warning.todo.clone(),
            })
            .collect(),
    }
}

/// What is unknown is left out.
fn machine(host: &Host) -> Vec<Fact> {
    let cores = host.topology.physical_cores().map(|cores| {
        let logical = host.topology.cpus.len();
        format!("{cores} physical, {logical} logical")
    });
    let mb = |bytes: u64| format!("{} MB", bytes >> 20);
    let rows = [
        ("processor", host.cpu.model.clone()),
        ("cores", cores),
        (
            "allowed CPUs",
            host.allowed_cpus().map(|cpus| cpus.to_string()),
        ),
        (
            "CPU quota",
            host.limits.quota.as_ref().map(ToString::to_string),
        ),
        ("memory", host.memory.total_bytes.map(mb)),
        (
            "memory limit",
            host.limits.memory.as_ref().map(|limit| mb(limit.bytes)),
        ),
        ("container", host.container.clone()),
        ("virtual machine", host.cpu.hypervisor.map(yes_no)),
        (
            "energy",
            Some(match &host.energy {
                Ok(source) => source.clone(),
                Err(why) => why.clone(),
            }),
        ),
    ];
    rows.into_iter()
        .filter_map(|(name, value)| value.map(|value| Fact { name, value }))
        .collect()
}

fn decisions(plan: &Plan) -> Vec<Decision> {
    let cpus = |cpus: &Vec<usize>| {
        let set: CpuSet = cpus.iter().copied().collect();
        format!("{} on CPUs {set}", cpus.len())
    };
    let tokens = |n: &usize| format!("{n} tokens");
    vec![
        decision("kernel", &plan.kernel, ToString::to_string),
        decision("threads", &plan.decode_cpus, cpus),
        decision("prompt threads", &plan.prefill_cpus, cpus),
        decision("pinned", &plan.pin, |pin| yes_no(*pin)),
        decision("slots", &plan.slots, ToString::to_string),
        decision("context per slot", &plan.slot_context, tokens),
        decision("prompt step", &plan.prefill_batch, tokens),
        decision("key/value cache", &plan.kv_type, |kv| kv_name(*kv)),
        decision("output head", &plan.head, |head| head.name().to_owned()),
        decision("locked in memory", &plan.mlock, |lock| yes_no(*lock)),
    ]
}

fn decision<T>(name: &'static str, choice: &Choice<T>, text: impl Fn(&T) -> String) -> Decision {
    Decision {
        name,
        value: text(&choice.value),
        because: choice.because.to_string(),
    }
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn kv_name(kv_type: KvType) -> String {
    format!("{kv_type:?}").to_lowercase()
}

fn parts(memory: &MemoryPlan) -> Vec<Part> {
    [
        ("weights", memory.weights_bytes),
        ("copies of the output head", memory.head_copies_bytes),
        ("key/value cache", memory.kv_bytes),
        ("buffers", memory.buffers_bytes),
        ("program", memory.program_bytes),
    ]
    .into_iter()
    .filter(|(_, bytes)| *bytes > 0)
    .map(|(name, bytes)| Part { name, bytes })
    .collect()
}

/// `None` when it has ended.
pub(crate) fn process(root: &Root, pid: u32) -> Option<Process> {
    let status = root.text(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes << 10)
    };
    Some(Process {
        pid,
        rss_bytes: bytes("VmRSS")?,
        file_bytes: bytes("RssFile").unwrap_or(0),
        cpu_ms: cpu_ms(&root.text(format!("/proc/{pid}/stat"))?)?,
    })
}

/// proc_pid_stat(5): fields 14 and 15, user and system time in clock ticks; the name before them may hold blanks.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_s = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some((user + system) * 1000 / ticks_s.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let vitals = Watch::new().vitals();
        let server = vitals.server.expect("a process");
        assert_eq!(server.pid, std::process::id());
        assert!(server.rss_bytes > server.file_bytes && server.rss_bytes > 1 << 20);
        assert_eq!(vitals.engine, None);
    }

    #[test]
    fn names_with_blanks_and_brackets() {
        let fields = "S 1 1 1 0 -1 4194560 0 0 0 0 250 150 0 0 20 0 1 0 1 2 3";
        let ticks_s = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as u64;
        let expected = Some(400 * 1000 / ticks_s);
        assert_eq!(cpu_ms(&format!("12 (a) b) {fields}")), expected);
        assert_eq!(cpu_ms("12 (a) S 1"), None);
    }
}
