//! Warnings on the machines of the fixtures.

use super::*;
use crate::host::tests::host;

fn warned(name: &str) -> Vec<String> {
    let path = format!(
        "{}/tests/fixtures/host/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    );
    let root = Root::open(path.as_ref()).unwrap();
    let warnings = warnings::of_host(&Host::read(&root), &root);
    warnings.iter().map(ToString::to_string).collect()
}

fn warned_of(name: &str, parts: &[&str]) {
    let warnings = warned(name);
    for part in parts {
        assert!(
            warnings.iter().any(|warning| warning.contains(part)),
            "{name}: `{part}` is missing in {warnings:#?}"
        );
    }
    assert_eq!(warnings.len(), parts.len(), "{name}: {warnings:#?}");
}

#[test]
fn every_machine_gets_its_own_advice() {
    warned_of("desktop-8c16t", &[]);
    warned_of("cloud-vm-4", &[]);
    warned_of("ampere-altra-80", &[]);
    warned_of("raspberry-pi-5", &[]);
    warned_of("hybrid-6p8e", &["MB of swap are in use"]);
    warned_of(
        "two-sockets-2x16",
        &["2 NUMA nodes", "2048 MB are set aside"],
    );
    warned_of(
        "container-v2",
        &[
            "the CPU quota stopped this container in 40 % of all periods, for 190 s",
            "a CPU quota of 1.5 CPUs is no whole number",
            "CPUs 2,3,4,5 share their physical cores",
            "1917 of 2048 MB under the limit in /sys/fs/cgroup/memory.max",
        ],
    );
}

#[test]
fn powersave_matters_where_it_means_the_lowest_clock() {
    let mut machine = host("desktop-8c16t");
    machine.topology.governor = Some("powersave".to_owned());
    let root = Root::of_report("");
    let count = |machine: &Host| warnings::of_host(machine, &root).len();
    assert_eq!(count(&machine), 1);
    machine.topology.scaling_driver = Some("amd-pstate-epp".to_owned());
    assert_eq!(count(&machine), 0);
}

#[test]
fn a_mask_beyond_the_cpuset_is_named() {
    let mut machine = host("desktop-8c16t");
    machine.limits.cpuset = Some("0-3,8-11".parse().unwrap());
    let warnings = warnings::of_host(&machine, &Root::of_report(""));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].what.contains("0-15 reaches beyond"),
        "{warnings:?}"
    );
}
