//! perf's power events: RAPL's counters through perf_event_open(2), 64 bits wide. Files in sysfs say which event of which type on
//! which CPUs, one for each package, and what one unit is. Kernel documentation:
//! `ABI/testing/sysfs-bus-event_source-devices-events`.
//!
//! Such an event belongs to a CPU, not to a process, so perf_event_paranoid has to be 0 or less, or the capability CAP_PERFMON held.

use std::fmt;
use std::io;

use perf_event::Builder;
use perf_event::events::Software;

use super::Root;
use super::energy::in_words;

/// Where the files lie.
pub(super) const DEVICE: &str = "/sys/bus/event_source/devices/power";
/// How events are written into `config` on every processor so far.
const FORMAT: &str = "config:0-7";

/// A counter that only grows.
pub(super) trait Count: fmt::Debug + Send {
    /// Units so far.
    fn read(&mut self) -> io::Result<u64>;
}

/// One event on one CPU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// perf's number of the device.
    pub(super) pmu: u32,
    pub(super) config: u64,
    pub(super) cpu: usize,
    /// Joules of one unit.
    pub(super) unit_j: f64,
}

/// What there is to open.
pub(super) struct PowerEvents {
    /// In words.
    pub(super) source: String,
    /// At least one.
    pub(super) events: Vec<Event>,
}

/// Packages and memory, or the whole platform where there is no package. `None` without such events.
pub(super) fn read(root: &Root) -> Option<PowerEvents> {
    let format = root.text(format!("{DEVICE}/format/event"));
    if format.is_some_and(|format| format != FORMAT) {
        return None;
    }
    let pmu = root.number(format!("{DEVICE}/type"))?;
    let cpus: Vec<usize> = root.cpus(format!("{DEVICE}/cpumask"))?.iter().collect();
    let first = cpus.first()?;
    let on = |name: &str, cpus: &[usize]| -> Vec<Event> {
        let Some((config, unit_j)) = event(root, name) else {
            return Vec::new();
        };
        let one = |&cpu| Event {
            pmu,
            config,
            cpu,
            unit_j,
        };
        cpus.iter().map(one).collect()
    };
    let packages = on("energy-pkg", &cpus);
    if packages.is_empty() {
        let events = on("energy-psys", &[*first]);
        let source = "perf power events, whole platform".to_owned();
        return (!events.is_empty()).then_some(PowerEvents { source, events });
    }
    let memory = on("energy-ram", &cpus);
    let and_memory = if memory.is_empty() { "" } else { " and memory" };
    let n = in_words(packages.len(), "package");
    Some(PowerEvents {
        source: format!("perf power events, {n}{and_memory}"),
        events: [packages, memory].concat(),
    })
}

/// Its `config`, and the joules of one unit.
fn event(root: &Root, name: &str) -> Option<(u64, f64)> {
    let at = format!("{DEVICE}/events/{name}");
    let text = root.text(&at)?;
    let code = text.strip_prefix("event=0x")?;
    let config = u64::from(u8::from_str_radix(code, 16).ok()?);
    let unit = root.text(format!("{at}.unit"))?;
    let unit_j = root.number::<f64>(format!("{at}.scale"))?;
    (unit == "Joules" && unit_j.is_finite() && unit_j > 0.0).then_some((config, unit_j))
}

/// Opens an event of this machine.
///
/// # Errors
/// The system's: `PermissionDenied` where this user may not.
pub(super) fn open(event: &Event) -> io::Result<Box<dyn Count>> {
    let mut builder = Builder::new(Software::DUMMY);
    let attrs = builder.attrs_mut();
    (attrs.type_, attrs.config) = (event.pmu, event.config);
    // The device can't tell the kernel's joules from a program's, and refuses to be asked.
    builder.exclude_kernel(false).exclude_hv(false);
    let mut counter = builder.any_pid().one_cpu(event.cpu).build()?;
    counter.enable()?;
    Ok(Box::new(Opened(counter)))
}

struct Opened(perf_event::Counter);

impl fmt::Debug for Opened {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("perf event")
    }
}

impl Count for Opened {
    fn read(&mut self) -> io::Result<u64> {
        self.0.read()
    }
}

/// Stands for an event of a machine that is looked at elsewhere.
#[derive(Debug)]
pub(super) struct Elsewhere;

impl Count for Elsewhere {
    fn read(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own clock of a CPU (type 1, config 0) is opened like an event of packages, where this user may.
    #[test]
    fn an_event_of_a_cpu_counts_or_is_refused() {
        let clock = Event {
            pmu: 1,
            config: 0,
            cpu: 0,
            unit_j: 1e-9,
        };
        let mut count = match open(&clock) {
            Ok(count) => count,
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(
                        kind,
                        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
                    ),
                    "{error}"
                );
                return;
            }
        };
        let before = count.read().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(count.read().unwrap() > before);
    }
}
