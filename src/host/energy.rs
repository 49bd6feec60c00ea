//! Energy as the machine's own counters tell it. Never an estimate: where nothing can be read, there is a reason instead.
//!
//! Sources, the first that can be read: powercap's RAPL zones (`energy_uj`, packages and memory, or the whole platform where
//! there is no package), hwmon's energy counters of the processor (`energyN_input`), hwmon's power sensors of the
//! processor or the mains (`powerN_average`, `powerN_input`), which are read often and summed over time. Powercap and hwmon:
//! the kernel's documentation, `power/powercap/powercap.rst` and `hwmon/sysfs-interface.rst`.
//!
//! Powercap counters wrap at `max_energy_range_uj`, after about 40 minutes at 100 W: [`Meter::sample`] has to be called more
//! often than that.

use std::io::ErrorKind;
use std::time::Instant;

use super::Root;

const POWERCAP: &str = "/sys/class/powercap";
const HWMON: &str = "/sys/class/hwmon";

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
        "no energy counter in {POWERCAP} or {HWMON}; virtual machines and containers rarely have one"
    )]
    Nothing,
    /// There is one, for others.
    #[error("`{path}` may not be read by this user; `chmod a+r {path}` as root allows it")]
    Denied {
        /// The first counter found.
        path: String,
    },
}

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
    path: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Microjoules since some time, starting again from 0 beyond `range_uj`.
    Energy { last_uj: u64, range_uj: Option<u64> },
    /// Microwatts now.
    Power { last_uw: u64, at: Instant },
}

impl Meter {
    /// The best meter that can be read.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn find(root: &Root) -> Result<Meter, Unavailable> {
        let mut denied = None;
        for candidate in [powercap(root), hwmon_energy(root), hwmon_power(root)] {
            let Some((source, wanted)) = candidate else {
                continue;
            };
            match open(root, &wanted) {
                Ok(counters) => {
                    return Ok(Meter {
                        root: root.clone(),
                        source,
                        counters,
                        joules: 0.0,
                    });
                }
                Err(path) => denied = denied.or(Some(path)),
            }
        }
        Err(denied.map_or(Unavailable::Nothing, |path| Unavailable::Denied { path }))
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
            let Some(value) = self.root.number::<u64>(&counter.path) else {
                continue;
            };
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
            Kind::Power { last_uw, at } => {
                let seconds = now.saturating_duration_since(*at).as_secs_f64();
                let joules = (*last_uw + value) as f64 / 2e6 * seconds;
                (*last_uw, *at) = (value, now);
                joules
            }
        }
    }
}

/// A counter to open: its file, and whether it counts energy (with the file of its range) or shows power.
struct Wanted {
    path: String,
    range: Option<String>,
    is_power: bool,
}

/// All counters, or the path of the first that this user may not read. One that vanished is left out.
fn open(root: &Root, wanted: &[Wanted]) -> Result<Vec<Counter>, String> {
    let mut counters = Vec::new();
    for one in wanted {
        let value = match root.read(&one.path) {
            Ok(text) => text.parse::<u64>().ok(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(one.path.clone());
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
            path: one.path.clone(),
            kind,
        });
    }
    match counters.is_empty() {
        true => Err(wanted.first().map_or_else(String::new, |w| w.path.clone())),
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
    let count = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    if packages.is_empty() {
        let source = "powercap RAPL, whole platform".to_owned();
        return (!platform.is_empty()).then(|| (source, wanted(&platform)));
    }
    let source = match memory.is_empty() {
        true => format!("powercap RAPL, {}", count(packages.len(), "package")),
        false => format!(
            "powercap RAPL, {} and memory",
            count(packages.len(), "package")
        ),
    };
    Some((source, wanted(&[packages, memory].concat())))
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
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn write(tree: &Path, path: &str, content: &str) {
        let path = tree.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn zone(tree: &Path, zone: &str, name: &str, energy_uj: u64) {
        let at = format!("/sys/class/powercap/{zone}");
        write(tree, &format!("{at}/name"), name);
        write(tree, &format!("{at}/energy_uj"), &energy_uj.to_string());
        write(tree, &format!("{at}/max_energy_range_uj"), "262143328850");
    }

    #[test]
    fn two_packages_and_their_memory_are_added_parts_are_not() {
        let tree = tempfile::tempdir().unwrap();
        let at = tree.path();
        let zones = [
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        ];
        for (path, name) in zones {
            zone(at, path, name, 1_000_000);
        }
        let mut meter = Meter::find(&Root::at(at)).unwrap();
        assert_eq!(meter.source(), "powercap RAPL, 2 packages and memory");
        assert!(!meter.is_sampled());
        for (n, (path, name)) in zones.iter().enumerate() {
            zone(at, path, name, 1_000_000 + 10_u64.pow(n as u32) * 1_000_000);
        }
        // package 0: 1 J, dram: 100 J, package 1: 1000 J; core, psys and the second path to package 0 don't count.
        assert_eq!(meter.sample(), 1101.0);
        assert_eq!(meter.sample(), 1101.0);
    }

    #[test]
    fn a_counter_that_wraps_goes_on() {
        let tree = tempfile::tempdir().unwrap();
        zone(tree.path(), "intel-rapl:0", "package-0", 262_143_000_000);
        let mut meter = Meter::find(&Root::at(tree.path())).unwrap();
        zone(tree.path(), "intel-rapl:0", "package-0", 671_150);
        let joules = meter.sample();
        assert!((joules - 1.0).abs() < 1e-9, "{joules}");
    }

    #[test]
    fn nothing_to_read_is_a_reason() {
        assert_eq!(
            Meter::find(&Root::of_report("")).unwrap_err(),
            Unavailable::Nothing
        );
        let root = Root::of_report(
            "=== /sys/class/powercap/intel-rapl:0/name\npackage-0\n=== /sys/class/powercap/intel-rapl:0/energy_uj\n(permission denied)\n",
        );
        let error = Meter::find(&root).unwrap_err().to_string();
        assert!(
            error.contains("`/sys/class/powercap/intel-rapl:0/energy_uj` may not be read"),
            "{error}"
        );
    }

    #[test]
    fn a_later_source_stands_in_for_one_that_is_denied() {
        let root = Root::of_report(
            "=== /sys/class/powercap/intel-rapl:0/name\npackage-0\n=== /sys/class/powercap/intel-rapl:0/energy_uj\n(permission denied)\n\
             === /sys/class/hwmon/hwmon3/name\namd_energy\n=== /sys/class/hwmon/hwmon3/energy1_label\nEcore000\n=== /sys/class/hwmon/hwmon3/energy1_input\n5\n\
             === /sys/class/hwmon/hwmon3/energy2_label\nEsocket0\n=== /sys/class/hwmon/hwmon3/energy2_input\n7000000\n",
        );
        let meter = Meter::find(&root).unwrap();
        assert_eq!(meter.source(), "hwmon amd_energy, energy counters");
        assert_eq!(meter.counters.len(), 1);
    }

    #[test]
    fn power_is_summed_over_time_and_graphics_cards_are_not_asked() {
        let tree = tempfile::tempdir().unwrap();
        let at = tree.path();
        write(at, "/sys/class/hwmon/hwmon0/name", "amdgpu");
        write(at, "/sys/class/hwmon/hwmon0/power1_average", "99000000");
        assert_eq!(
            Meter::find(&Root::at(at)).unwrap_err(),
            Unavailable::Nothing
        );
        write(at, "/sys/class/hwmon/hwmon1/name", "xgene_hwmon");
        write(at, "/sys/class/hwmon/hwmon1/power1_label", "CPU power");
        write(at, "/sys/class/hwmon/hwmon1/power1_input", "20000000");
        write(at, "/sys/class/hwmon/hwmon1/power2_label", "IO power");
        write(at, "/sys/class/hwmon/hwmon1/power2_input", "5000000");
        let mut meter = Meter::find(&Root::at(at)).unwrap();
        assert!(meter.is_sampled());
        let Kind::Power { at: began, .. } = meter.counters[0].kind else {
            panic!("{meter:?}");
        };
        write(at, "/sys/class/hwmon/hwmon1/power1_input", "40000000");
        let joules = meter.sample_at(began + Duration::from_secs(2));
        assert!((joules - 60.0).abs() < 1e-9, "{joules}");
    }
}
