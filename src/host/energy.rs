//! Energy as the machine's own counters tell it. Never an estimate: where nothing can be read, there is a reason instead.
//!
//! Sources, the first that can be read: powercap's RAPL zones (`energy_uj`, packages and memory, or the whole platform where
//! there is no package), perf's power events (the same counters, see `power_events`), hwmon's energy counters of the processor (`energyN_input`), hwmon's power sensors of the
//! processor or the mains (`powerN_average`, `powerN_input`), which are read often and summed over time. Powercap and hwmon:
//! the kernel's documentation, `power/powercap/powercap.rst` and `hwmon/sysfs-interface.rst`.
//!
//! Powercap counters wrap at `max_energy_range_uj`, after about 40 minutes at 100 W: [`Meter::sample`] has to be called more
//! often than that.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::Root;
use super::power_events::{self, Count, Event};

const POWERCAP: &str = "/sys/class/powercap";
const HWMON: &str = "/sys/class/hwmon";
/// Who may open perf's events of a whole CPU: everybody at 0 or less.
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// hwmon devices with energy counters of processors: (device, what the labels of the wanted counters begin with).
const ENERGY_DEVICES: &[(&str, &str)] = &[("amd_energy", "Esocket")];
/// hwmon devices with power sensors of processors, or of the whole machine: (device, what the labels begin with).
const POWER_DEVICES: &[(&str, &str)] = &[
    ("xgene_hwmon", "CPU power"),
    ("altra_hwmon", "CPU power"),
    ("fam15h_power", ""),
    ("power_meter", ""),
];

/// Why there is no meter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    /// Nothing that counts.
    #[error(
        "no energy counter in {POWERCAP}, {} or {HWMON}; virtual machines and containers rarely have one",
        power_events::DEVICE
    )]
    Nothing,
    /// There is one, for others.
    #[error("`{path}` may not be read by this user; `chmod a+r {path}` as root allows it")]
    Denied {
        /// The first counter found.
        path: String,
    },
    /// perf has one, for others.
    #[error(
        "perf's power events may not be opened by this user{}; `sysctl kernel.perf_event_paranoid=0` as root or the capability CAP_PERFMON allows it",
        paranoid.map_or_else(String::new, |level| format!(" (perf_event_paranoid is {level})"))
    )]
    PerfDenied {
        /// `/proc/sys/kernel/perf_event_paranoid`
        paranoid: Option<i32>,
    },
    /// perf has one and doesn't open it.
    #[error("perf's power events can't be opened: {0}")]
    Perf(String),
}

/// Opens one of perf's counters.
type Open<'a> = dyn Fn(&Event) -> io::Result<Box<dyn Count>> + 'a;

/// Adds up what the counters say from its start on.
#[derive(Debug)]
pub(crate) struct Meter {
    root: Root,
    source: String,
    counters: Vec<Counter>,
    joules: f64,
}

#[derive(Debug)]
struct Counter {
    source: Source,
    kind: Kind,
}

/// Where a counter's number comes from.
#[derive(Debug)]
enum Source {
    File(String),
    Perf(Box<dyn Count>),
}

#[derive(Debug)]
enum Kind {
    /// Microjoules since some time, starting again from 0 beyond `range_uj`.
    Energy { last_uj: u64, range_uj: Option<u64> },
    /// Units of `unit_j` joules since it was opened.
    Units { last: u64, unit_j: f64 },
    /// Microwatts now.
    Power { last_uw: u64, at: Instant },
}

impl Meter {
    /// The best meter that can be read.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn find(root: &Root) -> Result<Meter, Unavailable> {
        match root.is_live() {
            true => Meter::find_by(root, &power_events::open),
            false => Meter::find_by(root, &|_: &Event| as_reported(root)),
        }
    }

    fn find_by(root: &Root, open_event: &Open<'_>) -> Result<Meter, Unavailable> {
        let files = |found: Option<(String, Vec<Wanted>)>| {
            found.map(|(source, wanted)| (source, open(root, &wanted)))
        };
        let looks: [&dyn Fn() -> Option<Found>; 4] = [
            &|| files(powercap(root)),
            &|| perf(root, open_event),
            &|| files(hwmon_energy(root)),
            &|| files(hwmon_power(root)),
        ];
        let mut why_not = None;
        for look in looks {
            match look() {
                Some((source, Ok(counters))) => {
                    return Ok(Meter {
                        root: root.clone(),
                        source,
                        counters,
                        joules: 0.0,
                    });
                }
                Some((_, Err(error))) => why_not = why_not.or(Some(error)),
                None => {}
            }
        }
        Err(why_not.unwrap_or(Unavailable::Nothing))
    }

    /// Which counters, in words.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it has to be read often to be exact.
    pub(crate) fn is_sampled(&self) -> bool {
        self.counters
            .iter()
            .any(|counter| matches!(counter.kind, Kind::Power { .. }))
    }

    /// Joules since the meter was found. A counter that can't be read any more adds nothing.
    pub(crate) fn sample(&mut self) -> f64 {
        self.sample_at(Instant::now())
    }

    fn sample_at(&mut self, now: Instant) -> f64 {
        for counter in &mut self.counters {
            let value = match &mut counter.source {
                Source::File(path) => self.root.number::<u64>(path),
                Source::Perf(count) => count.read().ok(),
            };
            let Some(value) = value else { continue };
            self.joules += counter.advance(value, now);
        }
        self.joules
    }
}

impl Counter {
    /// Joules since the last look.
    fn advance(&mut self, value: u64, now: Instant) -> f64 {
        match &mut self.kind {
            Kind::Energy { last_uj, range_uj } => {
                let grown = match value.checked_sub(*last_uj) {
                    Some(grown) => grown,
                    // Wrapped, or set back to 0.
                    None => range_uj
                        .and_then(|range| range.checked_sub(*last_uj))
                        .map_or(value, |rest| rest + value),
                };
                *last_uj = value;
                grown as f64 / 1e6
            }
            Kind::Units { last, unit_j } => {
                let grown = value.saturating_sub(*last);
                *last = value.max(*last);
                grown as f64 * *unit_j
            }
            Kind::Power { last_uw, at } => {
                let seconds = now.saturating_duration_since(*at).as_secs_f64();
                let joules = (*last_uw + value) as f64 / 2e6 * seconds;
                (*last_uw, *at) = (value, now);
                joules
            }
        }
    }
}

/// A source in words with its counters, or why they can't be read.
type Found = (String, Result<Vec<Counter>, Unavailable>);

/// perf's events of all packages.
fn perf(root: &Root, open_event: &Open<'_>) -> Option<Found> {
    let power = power_events::read(root)?;
    let opened = power.events.iter().map(|event| {
        let mut count = open_event(event)?;
        let kind = Kind::Units {
            last: count.read()?,
            unit_j: event.unit_j,
        };
        let source = Source::Perf(count);
        Ok(Counter { source, kind })
    });
    let counters = opened.collect::<io::Result<Vec<_>>>();
    let counters = counters.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Unavailable::PerfDenied {
            paranoid: root.number(PARANOID),
        },
        _ => Unavailable::Perf(error.to_string()),
    });
    Some((power.source, counters))
}

/// Another machine's event: counts nothing here, and may be read there by everybody when perf says so.
fn as_reported(root: &Root) -> io::Result<Box<dyn Count>> {
    match root.number::<i32>(PARANOID) {
        Some(..=0) => Ok(Box::new(power_events::Elsewhere)),
        _ => Err(ErrorKind::PermissionDenied.into()),
    }
}

/// A counter to open: its file, and whether it counts energy (with the file of its range) or shows power.
struct Wanted {
    path: String,
    range: Option<String>,
    is_power: bool,
}

/// All counters, unless this user may not read one. One that vanished is left out.
fn open(root: &Root, wanted: &[Wanted]) -> Result<Vec<Counter>, Unavailable> {
    let denied = |path: &str| Unavailable::Denied { path: path.into() };
    let mut counters = Vec::new();
    for one in wanted {
        let value = match root.read(&one.path) {
            Ok(text) => text.parse::<u64>().ok(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(denied(&one.path));
            }
            Err(_) => None,
        };
        let Some(value) = value else { continue };
        let kind = match one.is_power {
            true => Kind::Power {
                last_uw: value,
                at: Instant::now(),
            },
            false => Kind::Energy {
                last_uj: value,
                range_uj: one.range.as_ref().and_then(|range| root.number(range)),
            },
        };
        counters.push(Counter {
            source: Source::File(one.path.clone()),
            kind,
        });
    }
    match counters.is_empty() {
        true => Err(denied(wanted.first().map_or("", |w| &w.path))),
        false => Ok(counters),
    }
}

/// `intel-rapl:N` are packages or the platform (`psys`, which holds them all), `intel-rapl:N:M` their parts, of which only
/// memory (`dram`) is not inside the package. AMD's counters have the same names.
fn powercap(root: &Root) -> Option<(String, Vec<Wanted>)> {
    let mut packages = Vec::new();
    let mut memory = Vec::new();
    let mut platform = Vec::new();
    for zone in root.names(POWERCAP) {
        if !zone.starts_with("intel-rapl:") {
            continue;
        }
        let is_part = zone.matches(':').count() == 2;
        let name = root
            .text(format!("{POWERCAP}/{zone}/name"))
            .unwrap_or_default();
        match (is_part, name.as_str()) {
            (false, name) if name.starts_with("package") => packages.push(zone),
            (false, "psys") => platform.push(zone),
            (true, "dram") => memory.push(zone),
            _ => {}
        }
    }
    let wanted = |zones: &[String]| -> Vec<Wanted> {
        let one = |zone: &String| Wanted {
            path: format!("{POWERCAP}/{zone}/energy_uj"),
            range: Some(format!("{POWERCAP}/{zone}/max_energy_range_uj")),
            is_power: false,
        };
        zones.iter().map(one).collect()
    };
    if packages.is_empty() {
        let source = "powercap RAPL, whole platform".to_owned();
        return (!platform.is_empty()).then(|| (source, wanted(&platform)));
    }
    let source = match memory.is_empty() {
        true => format!("powercap RAPL, {}", in_words(packages.len(), "package")),
        false => format!(
            "powercap RAPL, {} and memory",
            in_words(packages.len(), "package")
        ),
    };
    Some((source, wanted(&[packages, memory].concat())))
}

pub(super) fn in_words(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

fn hwmon_energy(root: &Root) -> Option<(String, Vec<Wanted>)> {
    hwmon(
        root,
        ENERGY_DEVICES,
        &["energy"],
        &["input"],
        "energy counters",
        false,
    )
}

fn hwmon_power(root: &Root) -> Option<(String, Vec<Wanted>)> {
    hwmon(
        root,
        POWER_DEVICES,
        &["power"],
        &["average", "input"],
        "power read every moment",
        true,
    )
}

/// The first known device's sensors: of each number the first ending there is.
fn hwmon(
    root: &Root,
    devices: &[(&str, &str)],
    stems: &[&str],
    endings: &[&str],
    what: &str,
    is_power: bool,
) -> Option<(String, Vec<Wanted>)> {
    for device in root.names(HWMON) {
        let at = format!("{HWMON}/{device}");
        let name = root.text(format!("{at}/name")).unwrap_or_default();
        let Some((_, label_begins)) = devices.iter().find(|(known, _)| *known == name) else {
            continue;
        };
        let files = root.names(&at);
        let mut wanted = Vec::new();
        for number in 1..=64 {
            for stem in stems {
                let label = root
                    .text(format!("{at}/{stem}{number}_label"))
                    .unwrap_or_default();
                let file = endings
                    .iter()
                    .map(|ending| format!("{stem}{number}_{ending}"))
                    .find(|file| files.contains(file));
                if let Some(file) = file.filter(|_| label.starts_with(label_begins)) {
                    let path = format!("{at}/{file}");
                    wanted.push(Wanted {
                        path,
                        range: None,
                        is_power,
                    });
                }
            }
        }
        if !wanted.is_empty() {
            return Some((format!("hwmon {name}, {what}"), wanted));
        }
    }
    None
}

#[cfg(test)]
mod tests;
