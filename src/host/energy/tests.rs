//! Fake trees, and counters that stand in for perf's.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
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

const PERF: &str = "/sys/bus/event_source/devices/power";

/// perf's files for the CPUs that stand for the packages.
fn perf_tree(tree: &Path, cpumask: &str, events: &[(&str, &str)]) {
    write(tree, &format!("{PERF}/type"), "18\n");
    write(tree, &format!("{PERF}/cpumask"), cpumask);
    write(tree, &format!("{PERF}/format/event"), "config:0-7\n");
    for (name, config) in events {
        let at = format!("{PERF}/events/{name}");
        write(tree, &at, config);
        write(tree, &format!("{at}.unit"), "Joules\n");
        write(
            tree,
            &format!("{at}.scale"),
            "2.3283064365386962890625e-10\n",
        );
    }
}

/// Counts what the test says, in units of 2^-32 J.
#[derive(Debug)]
struct Fake(Arc<AtomicU64>);

impl Count for Fake {
    fn read(&mut self) -> io::Result<u64> {
        Ok(self.0.load(Ordering::Relaxed))
    }
}

/// Opens a [`Fake`] for every event, and keeps what was opened.
type Opened = Arc<Mutex<Vec<(Event, Arc<AtomicU64>)>>>;

fn opens(opened: &Opened) -> impl Fn(&Event) -> io::Result<Box<dyn Count>> + use<> {
    let opened = Arc::clone(opened);
    move |event| {
        let count = Arc::new(AtomicU64::new(7 << 32));
        opened
            .lock()
            .unwrap()
            .push((event.clone(), Arc::clone(&count)));
        Ok(Box::new(Fake(count)))
    }
}

fn denies(_: &Event) -> io::Result<Box<dyn Count>> {
    Err(io::Error::from_raw_os_error(13))
}

#[test]
fn perf_counts_each_package_and_its_memory() {
    let tree = tempfile::tempdir().unwrap();
    let events = [
        ("energy-pkg", "event=0x02\n"),
        ("energy-ram", "event=0x03\n"),
        ("energy-cores", "event=0x01\n"),
        ("energy-psys", "event=0x05\n"),
    ];
    perf_tree(tree.path(), "0,18\n", &events);
    let opened = Opened::default();
    let mut meter = Meter::find_by(&Root::at(tree.path()), &opens(&opened)).unwrap();
    assert_eq!(meter.source(), "perf power events, 2 packages and memory");
    assert!(!meter.is_sampled());
    let opened = opened.lock().unwrap();
    let places: Vec<_> = opened
        .iter()
        .map(|(event, _)| (event.pmu, event.config, event.cpu))
        .collect();
    assert_eq!(places, [(18, 2, 0), (18, 2, 18), (18, 3, 0), (18, 3, 18)]);
    assert_eq!(meter.sample(), 0.0);
    for (n, (_, count)) in opened.iter().enumerate() {
        // 1, 10, 100 and 1000 J.
        count.fetch_add(10_u64.pow(n as u32) << 32, Ordering::Relaxed);
    }
    assert_eq!(meter.sample(), 1111.0);
    assert_eq!(meter.sample(), 1111.0);
}

#[test]
fn powercap_comes_before_perf_and_perf_before_hwmon() {
    let tree = tempfile::tempdir().unwrap();
    let at = tree.path();
    write(at, "/sys/class/hwmon/hwmon3/name", "amd_energy");
    write(at, "/sys/class/hwmon/hwmon3/energy2_label", "Esocket0");
    write(at, "/sys/class/hwmon/hwmon3/energy2_input", "7000000");
    let source =
        |open: &Open<'_>| Meter::find_by(&Root::at(at), open).map(|it| it.source().to_owned());
    let opened = Opened::default();
    let hwmon = Ok("hwmon amd_energy, energy counters".to_owned());
    assert_eq!(source(&opens(&opened)), hwmon);
    perf_tree(at, "0\n", &[("energy-pkg", "event=0x02\n")]);
    let perf = Ok("perf power events, 1 package".to_owned());
    assert_eq!(source(&opens(&opened)), perf);
    assert_eq!(source(&denies), hwmon);
    zone(at, "intel-rapl:0", "package-0", 5);
    assert_eq!(source(&denies), Ok("powercap RAPL, 1 package".to_owned()));
    assert_eq!(opened.lock().unwrap().len(), 1);
}

#[test]
fn perf_that_may_not_be_opened_is_a_reason() {
    let tree = tempfile::tempdir().unwrap();
    perf_tree(tree.path(), "0\n", &[("energy-pkg", "event=0x02\n")]);
    write(tree.path(), PARANOID, "4\n");
    let root = Root::at(tree.path());
    let error = Meter::find_by(&root, &denies).unwrap_err();
    assert_eq!(error, Unavailable::PerfDenied { paranoid: Some(4) });
    let text = error.to_string();
    assert!(
        text.contains("(perf_event_paranoid is 4); `sysctl kernel.perf_event_paranoid=0`"),
        "{text}"
    );
    // No event is opened here for a machine that is looked at elsewhere.
    assert_eq!(Meter::find(&root).unwrap_err(), error);
    write(tree.path(), PARANOID, "0\n");
    assert_eq!(
        Meter::find(&root).unwrap().source(),
        "perf power events, 1 package"
    );
    let gone = |_: &Event| Err(io::Error::from_raw_os_error(19));
    let text = Meter::find_by(&root, &gone).unwrap_err().to_string();
    assert!(
        text.starts_with("perf's power events can't be opened: No such device"),
        "{text}"
    );
}

#[test]
fn perf_files_that_say_something_else_are_left_alone() {
    let odd: [&dyn Fn(&Path); 6] = [
        &|at| write(at, &format!("{PERF}/type"), "many"),
        &|at| write(at, &format!("{PERF}/cpumask"), ""),
        &|at| write(at, &format!("{PERF}/format/event"), "config1:0-7"),
        &|at| {
            write(
                at,
                &format!("{PERF}/events/energy-pkg"),
                "event=0x02,umask=0x1",
            )
        },
        &|at| write(at, &format!("{PERF}/events/energy-pkg.unit"), "Watts"),
        &|at| write(at, &format!("{PERF}/events/energy-pkg.scale"), "-1"),
    ];
    for (n, spoil) in odd.iter().enumerate() {
        let tree = tempfile::tempdir().unwrap();
        perf_tree(tree.path(), "0\n", &[("energy-pkg", "event=0x02\n")]);
        spoil(tree.path());
        let found = Meter::find_by(&Root::at(tree.path()), &opens(&Opened::default()));
        assert_eq!(found.unwrap_err(), Unavailable::Nothing, "case {n}");
    }
}

#[test]
fn a_platform_without_packages_is_counted_once() {
    let tree = tempfile::tempdir().unwrap();
    perf_tree(tree.path(), "0-1\n", &[("energy-psys", "event=0x05\n")]);
    let meter = Meter::find_by(&Root::at(tree.path()), &opens(&Opened::default())).unwrap();
    assert_eq!(meter.source(), "perf power events, whole platform");
    assert_eq!(meter.counters.len(), 1);
}
