//! Plans for the machines of the fixtures, and rules that hold on any machine.

use std::collections::BTreeSet;

use bitnet_kernels::Packing;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::Overrides;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::host::cgroup::{MemoryLimit, Quota};
use crate::host::tests::host;
use crate::host::topology::{CoreKind, LogicalCpu, Node};
use crate::host::{Limits, Memory, Root, Topology};
use crate::settings::tests::settings;

/// Shapes and sizes of the official 2B-4T file.
fn facts_2b() -> ModelFacts {
    let gguf = Gguf::from_bytes(crate::demo::bytes()).unwrap();
    let demo = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
    ModelFacts {
        n_layer: 30,
        n_embd: 2560,
        n_ff: 6912,
        n_head: 20,
        n_head_kv: 5,
        head_dim: 128,
        n_vocab: 128_256,
        context_length: 4096,
        n_params: 2_412_820_480,
        file_bytes: 1_187_801_280,
        weight_bytes: 521_011_200,
        head_bytes: 656_670_720,
        embedding_bytes: 656_670_720,
        vector_bytes: 1_761_280,
        tied_head: true,
        head_type: TensorType::F16,
        ..demo
    }
}

fn planned(machine: &str, flags: &[(&'static str, &str)]) -> Result<Plan, PlanError> {
    plan(&host(machine), &facts_2b(), &settings(flags, &[]))
}

fn refused(machine: &str, flags: &[(&'static str, &str)]) -> (String, String) {
    let error = planned(machine, flags).unwrap_err();
    (error.to_string(), error.hint().unwrap())
}

#[test]
fn a_desktop_gets_one_thread_per_core_and_four_slots() {
    let plan = planned("desktop-8c16t", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, (0..8).collect::<Vec<_>>());
    assert_eq!(plan.prefill_cpus.value, plan.decode_cpus.value);
    assert_eq!(
        (plan.pin.value, &plan.pin.because),
        (true, &Reason::WholeMachine)
    );
    assert_eq!((plan.slots.value, plan.slot_context.value), (4, 4096));
    assert_eq!(plan.memory.kv_bytes, 4 * 4096 * 76_800);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let lines = plan.lines();
    assert!(
        lines[0].starts_with("Auto-selected kernel: i2_s ("),
        "{}",
        lines[0]
    );
    assert_eq!(
        lines[1],
        "Auto-configured threads: 8 (one per physical core, 16 logical CPUs allowed)"
    );
}

#[test]
fn a_hybrid_decodes_on_performance_cores_and_reads_prompts_on_all() {
    let plan = planned("hybrid-6p8e", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, [0, 2, 4, 6, 8, 10]);
    assert_eq!(
        plan.decode_cpus.because,
        Reason::PerformanceCores { of_cores: 14 }
    );
    assert_eq!(plan.prefill_cpus.value.len(), 14);
    assert!(plan.prefill_cpus.value.starts_with(&plan.decode_cpus.value));
    let plan = planned("arm-big-little", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, [4, 5, 6, 7]);
    let only_small = planned("hybrid-6p8e", &[("cpu-affinity", "12-15")]).unwrap();
    assert_eq!(only_small.decode_cpus.value, [12, 13, 14, 15]);
}

#[test]
fn a_container_stays_within_quota_set_and_memory() {
    for machine in ["container-v1", "container-v2"] {
        let plan = planned(machine, &[]).unwrap();
        assert_eq!(plan.decode_cpus.value, [2], "{machine}");
        let because = plan.decode_cpus.because.to_string();
        assert_eq!(
            because,
            "CPU quota of 1.5 CPUs, rounded down; 4 physical cores allowed"
        );
        assert!(!plan.pin.value, "{machine}");
        assert_eq!(plan.slots.value, 2, "{machine}");
        assert!(matches!(
            plan.slots.because,
            Reason::FitsMemory { wanted: 4, .. }
        ));
        assert!(plan.memory.total_bytes() <= plan.memory.budget.clone().unwrap().bytes);
    }
}

#[test]
fn two_sockets_use_the_node_that_holds_the_model() {
    let plan = planned("two-sockets-2x16", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, (0..16).collect::<Vec<_>>());
    assert_eq!(plan.prefill_cpus.value, plan.decode_cpus.value);
    assert_eq!(
        plan.decode_cpus.because.to_string(),
        "one per physical core of NUMA node 0 of 2, whose memory holds all"
    );
    let mut full = host("two-sockets-2x16");
    full.topology.nodes[0].available_bytes = Some(1 << 30);
    let plan = super::plan(&full, &facts_2b(), &settings(&[], &[])).unwrap();
    assert_eq!(plan.decode_cpus.value, (16..32).collect::<Vec<_>>());
    full.topology.nodes[1].available_bytes = None;
    let plan = super::plan(&full, &facts_2b(), &settings(&[], &[])).unwrap();
    assert_eq!(plan.threads(), 32);
    // Who asks for more than a node has gets the other's, too; who names CPUs gets those.
    let plan = planned("two-sockets-2x16", &[("threads", "40")]).unwrap();
    assert_eq!(plan.threads(), 40);
    let plan = planned("two-sockets-2x16", &[("cpu-affinity", "14-17")]).unwrap();
    assert_eq!(plan.decode_cpus.value, [14, 15, 16, 17]);
    let plan = planned("two-sockets-2x16", &[("cpu-affinity", "none")]).unwrap();
    assert_eq!(plan.threads(), 32);
}

#[test]
fn numa_as_asked() {
    let cpus = |flags: &[(&'static str, &str)]| {
        let plan = planned("two-sockets-2x16", flags).unwrap();
        (plan.decode_cpus.value, plan.pin.value)
    };
    let (all, pinned) = cpus(&[("numa", "distribute")]);
    assert_eq!((all.len(), pinned), (32, true));
    let (four, _) = cpus(&[("numa", "distribute"), ("threads", "4")]);
    assert_eq!(four, [0, 16, 1, 17]);
    assert_eq!(cpus(&[("numa", "numactl")]).0, (0..32).collect::<Vec<_>>());
    let mut full = host("two-sockets-2x16");
    for node in &mut full.topology.nodes {
        node.available_bytes = Some(1 << 20);
    }
    let isolated = plan(&full, &facts_2b(), &settings(&[("numa", "isolate")], &[]));
    assert_eq!(isolated.unwrap().threads(), 16);
    let one_node = planned("desktop-8c16t", &[("numa", "distribute")]).unwrap();
    assert_eq!(one_node.decode_cpus.value, (0..8).collect::<Vec<_>>());
}

#[test]
fn scaled_positions_reach_further() {
    let asked = [("ctx-size", "16384")];
    let slots = |facts: &ModelFacts, flags: &[(&'static str, &str)]| {
        let flags = [&asked[..], flags].concat();
        plan(&host("two-sockets-2x16"), facts, &settings(&flags, &[])).unwrap()
    };
    let mut facts = facts_2b();
    let cut = slots(&facts, &[]);
    assert_eq!((cut.slot_context.value, cut.warnings.len()), (4096, 1));
    assert_eq!(
        slots(&facts, &[("rope-freq-base", "2e6")])
            .slot_context
            .value,
        16384
    );
    facts.rope.freq_scale = 0.5;
    assert_eq!(slots(&facts, &[]).slot_context.value, 8192);
    facts.rope.freq_scale = 0.25;
    let whole = slots(&facts, &[]);
    assert_eq!((whole.slot_context.value, whole.warnings.len()), (16384, 0));
}

#[test]
fn a_copied_file_stays_beside_what_is_packed_from_it() {
    let bytes = |flags: &[(&'static str, &str)]| {
        let plan = planned("desktop-8c16t", flags).unwrap();
        plan.memory.weights_bytes
    };
    let copied = ("weights", "copied");
    assert_eq!(bytes(&[copied]), bytes(&[]));
    assert_eq!(
        bytes(&[copied, ("kernel", "tl2")]),
        bytes(&[("kernel", "tl2")]) + facts_2b().weight_bytes
    );
}

#[test]
fn other_machines() {
    let plan = planned("cloud-vm-4", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, [0, 1]);
    let plan = planned("ampere-altra-80", &[]).unwrap();
    assert_eq!(plan.threads(), 80);
    let plan = planned("this-machine", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, [0, 1]);
    assert_eq!(plan.kv_type.because, Reason::Default);
}

#[test]
fn the_cache_shrinks_by_use_case_or_as_a_last_resort() {
    let kv = |limit_mb: u64, flags: &[(&'static str, &str)]| {
        let mut machine = host("container-v2");
        machine.limits.memory.as_mut().unwrap().bytes = limit_mb << 20;
        plan(&machine, &facts_2b(), &settings(flags, &[])).map(|plan| {
            assert!(plan.memory.total_bytes() <= plan.memory.budget.as_ref().unwrap().bytes);
            (plan.kv_type.value, plan.kv_type.because.to_string())
        })
    };
    let (f16, q8_0) = (KvType::F16, KvType::Q8_0);
    assert_eq!(kv(4096, &[]).unwrap(), (f16, "default".to_owned()));
    let efficient = ("use-case", "memory_efficient");
    let found = kv(4096, &[efficient]).unwrap();
    assert_eq!(found, (q8_0, "use case memory_efficient".to_owned()));
    let found = kv(4096, &[efficient, ("kv-type", "f16")]).unwrap();
    assert_eq!(found.0, f16);
    // The smallest limit that f16 fits into, and one megabyte less.
    let least = (1024..4096)
        .find(|mb| kv(*mb, &[("kv-type", "f16")]).is_ok())
        .unwrap();
    assert_eq!(kv(least, &[]).unwrap().0, f16);
    let found = kv(least - 1, &[]).unwrap();
    assert_eq!(found, (q8_0, "f16 would not fit into memory".to_owned()));
    assert!(kv(least - 1, &[("kv-type", "f16")]).is_err());
}

#[test]
fn locking_more_than_allowed_is_a_warning() {
    let locked = |machine: &str| {
        let plan = planned(machine, &[("mlock", "on")]).unwrap();
        plan.warnings
            .iter()
            .any(|w| w.what.contains("are to be locked"))
    };
    assert!(locked("this-machine"));
    assert!(!locked("two-sockets-2x16"));
}

#[test]
fn a_small_board_is_planned_too() {
    let plan = planned("raspberry-pi-5", &[]).unwrap();
    assert_eq!(plan.decode_cpus.value, [0, 1, 2, 3]);
    assert_eq!(plan.slots.value, 4);
}

#[test]
fn nothing_known_still_makes_a_plan() {
    let tree = tempfile::tempdir().unwrap();
    let plan = plan(
        &Host::read(&Root::at(tree.path())),
        &facts_2b(),
        &settings(&[], &[]),
    )
    .unwrap();
    assert_eq!(
        (plan.decode_cpus.value, plan.decode_cpus.because),
        (vec![0], Reason::NothingKnown)
    );
    assert!(!plan.pin.value);
    assert_eq!(plan.memory.budget, None);
}

#[test]
fn threads_asked_for_are_taken_as_far_as_there_are_cpus() {
    let plan = planned("desktop-8c16t", &[("threads", "12")]).unwrap();
    assert_eq!(plan.decode_cpus.value, (0..12).collect::<Vec<_>>());
    assert_eq!(plan.prefill_cpus.value, plan.decode_cpus.value);
    assert!(plan.lines()[1].starts_with("Selected threads: 12 (flag --threads)"));
    let plan = planned("desktop-8c16t", &[("threads", "64")]).unwrap();
    assert_eq!(plan.threads(), 16);
    assert!(
        plan.warnings[0]
            .to_string()
            .contains("64 threads (flag --threads) are more than the 16 CPUs")
    );
    let plan = planned("container-v2", &[("threads", "4")]).unwrap();
    assert_eq!(plan.decode_cpus.value, [2, 3, 4, 5]);
    assert!(
        plan.warnings[0].what.contains("throttled"),
        "{:?}",
        plan.warnings
    );
    let plan = planned("desktop-8c16t", &[("threads", "4"), ("threads-batch", "8")]).unwrap();
    assert_eq!((plan.threads(), plan.prefill_cpus.value.len()), (4, 8));
    let plan = planned("desktop-8c16t", &[("threads-batch", "2")]).unwrap();
    assert_eq!(
        (
            plan.threads(),
            plan.prefill_cpus.value.len(),
            plan.warnings.len()
        ),
        (8, 8, 1)
    );
}

#[test]
fn cpus_asked_for_are_pinned_and_must_be_allowed() {
    let plan = planned("desktop-8c16t", &[("cpu-affinity", "2-3,10-11")]).unwrap();
    assert_eq!(
        (plan.decode_cpus.value.clone(), plan.pin.value),
        (vec![2, 3], true)
    );
    let (message, hint) = refused("container-v2", &[("cpu-affinity", "0-3")]);
    assert_eq!(
        message,
        "CPUs 0-1 (flag --cpu-affinity) are not available to this process, allowed: 2-5"
    );
    assert_eq!(hint, "`--cpu-affinity 2-5`, or `auto`");
    let plan = planned("desktop-8c16t", &[("cpu-affinity", "none")]).unwrap();
    assert!(!plan.pin.value);
}

#[test]
fn a_kernel_asked_for_is_taken_or_refused_by_name() {
    let plan = planned("desktop-8c16t", &[("kernel", "i2_s/scalar")]).unwrap();
    assert_eq!(
        plan.lines()[0],
        "Selected kernel: i2_s (scalar; flag --kernel)"
    );
    let (message, hint) = refused("desktop-8c16t", &[("kernel", "i2_s/abacus")]);
    assert!(
        message
            .starts_with("kernel `i2_s/abacus` (flag --kernel) can't run here, available: i2_s/"),
        "{message}"
    );
    assert_eq!(hint, "`--kernel auto` takes the best one");
}

#[test]
fn packings_with_tables_are_taken_by_name_and_counted_by_their_bytes() {
    let weights_bytes = |kernel: &str| {
        let plan = planned("desktop-8c16t", &[("kernel", kernel)]).unwrap();
        let name = plan.kernel.value.to_string();
        assert!(name.starts_with(kernel), "{name}");
        plan.memory.weights_bytes
    };
    let automatic = planned("desktop-8c16t", &[]).unwrap();
    assert_eq!(automatic.kernel.value.packing(), Packing::I2S);
    let i2_s = weights_bytes("i2_s");
    assert_eq!(automatic.memory.weights_bytes, i2_s);
    assert_eq!(weights_bytes("tl1/scalar"), i2_s);
    let saved = i2_s - weights_bytes("tl2");
    let sixth = facts_2b().ternary_bytes(Packing::I2S) / 6;
    assert!(sixth * 97 / 100 < saved && saved <= sixth, "{saved}");
    let old = settings(&[], &[("BITNET_KERNEL", "tl2")]);
    let plan = plan(&host("desktop-8c16t"), &facts_2b(), &old).unwrap();
    assert_eq!(plan.kernel.value.packing(), Packing::Tl2);
    assert!(
        plan.lines()[0].ends_with("; environment BITNET_KERNEL)"),
        "{}",
        plan.lines()[0]
    );
}

#[test]
fn contexts_follow_llama_server() {
    let both = |flags: &[(&'static str, &str)]| {
        let plan = planned("desktop-8c16t", flags).unwrap();
        (
            plan.slots.value,
            plan.slot_context.value,
            plan.warnings.len(),
        )
    };
    assert_eq!(both(&[("ctx-size", "2048")]), (4, 2048, 0));
    assert_eq!(
        both(&[("ctx-size", "8192"), ("parallel", "4")]),
        (4, 2048, 0)
    );
    assert_eq!(both(&[("parallel", "2")]), (2, 4096, 0));
    assert_eq!(both(&[("ctx-size", "0")]), (4, 4096, 0));
    assert_eq!(both(&[("ctx-size", "100000")]), (4, 4096, 1));
    assert_eq!(both(&[("use-case", "memory_efficient")]), (1, 2048, 0));
    assert_eq!(both(&[("use-case", "high_performance")]), (8, 4096, 0));
    let (message, _) = refused("desktop-8c16t", &[("ctx-size", "32"), ("parallel", "4")]);
    assert_eq!(
        message,
        "8 tokens per slot (flag --ctx-size), expected at least 16"
    );
}

#[test]
fn what_does_not_fit_is_refused_part_by_part() {
    let mut small = host("container-v2");
    small.limits.memory.as_mut().unwrap().bytes = 1 << 30;
    let error = plan(&small, &facts_2b(), &settings(&[], &[])).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("the model does not fit: "), "{message}");
    for part in [
        "1125 weights",
        "key/value cache",
        "buffers",
        "program",
        "973 MB available",
        "/sys/fs/cgroup/memory.max",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let (message, hint) = refused(
        "container-v2",
        &[("ctx-size", "16384"), ("parallel", "8"), ("kv-type", "f32")],
    );
    assert!(message.contains("key/value cache"), "{message}");
    assert!(
        hint.contains("--parallel") && hint.contains("--ctx-size") && hint.contains("f16"),
        "{hint}"
    );
    small.limits.memory.as_mut().unwrap().bytes = 1400 << 20;
    let plan = plan(&small, &facts_2b(), &settings(&[], &[])).unwrap();
    assert_eq!(plan.slots.value, 1);
    assert!(plan.slot_context.value < 4096 && plan.slot_context.value.is_multiple_of(256));
}

#[test]
fn a_large_head_is_screened_where_there_is_room() {
    let head = |host: &Host, facts: &ModelFacts, flags: &[(&'static str, &str)]| {
        let plan = plan(host, facts, &settings(flags, &[])).unwrap();
        assert_eq!(
            plan.memory.head_copies_bytes > 0,
            plan.head.value != HeadMode::Full
        );
        (plan.head, plan.warnings.len(), plan.slots.value)
    };
    let desktop = host("desktop-8c16t");
    let facts = facts_2b();
    let (choice, _, _) = head(&desktop, &facts, &[]);
    assert_eq!(choice.value, HeadMode::Exact);
    assert_eq!(choice.because.to_string(), "a head of 627 MB");
    let plan = planned("desktop-8c16t", &[("head", "proven")]).unwrap();
    assert_eq!(plan.memory.head_copies_bytes, 128_256 * (2560 + 20));
    assert_eq!(plan.head.value, HeadMode::Proven);
    assert!(plan.head.because.is_asked());
    let (choice, _, _) = head(&desktop, &facts, &[("head", "full")]);
    assert_eq!(choice.value, HeadMode::Full);

    let small = ModelFacts {
        n_vocab: 6000,
        ..facts.clone()
    };
    let (choice, n_warnings, _) = head(&desktop, &small, &[]);
    let small_head = Choice::new(HeadMode::Full, Reason::SmallHead);
    assert_eq!((choice, n_warnings), (small_head, 0));
    let quantised = ModelFacts {
        head_type: TensorType::Q6K,
        ..facts.clone()
    };
    let because = Reason::HeadNotScreened {
        ty: TensorType::Q6K,
    };
    let full = Choice::new(HeadMode::Full, because);
    assert_eq!(head(&desktop, &quantised, &[]).0, full);
    let (choice, n_warnings, _) = head(&desktop, &quantised, &[("head", "exact")]);
    assert_eq!((choice, n_warnings), (full, 1));

    // Slots before copies, unless the copies were asked for.
    let mut tight = host("container-v2");
    tight.limits.memory.as_mut().unwrap().bytes = 2800 << 20;
    let (choice, _, slots) = head(&tight, &facts, &[]);
    assert_eq!((choice.value, slots), (HeadMode::Full, 4));
    let reason = choice.because.to_string();
    assert_eq!(reason, "316 MB of copies would not fit into memory");
    let (choice, _, slots) = head(&tight, &facts, &[("head", "exact")]);
    assert_eq!(choice.value, HeadMode::Exact);
    assert!(slots < 4);
}

#[test]
fn a_quantised_head_is_made_when_asked_for_or_refused_by_name() {
    for (asked, mode, row_bytes) in [
        ("q8_0", HeadMode::Q8_0, 80 * 34),
        ("q6_k", HeadMode::Q6_K, 10 * 210),
    ] {
        let plan = planned("desktop-8c16t", &[("head", asked)]).unwrap();
        assert_eq!(plan.head.value, mode);
        assert_eq!(plan.memory.head_copies_bytes, 128_256 * row_bytes);
        assert!(plan.head.because.is_asked() && plan.warnings.is_empty());
        let line = format!(
            "Output head: {asked} (flag --head; tokens may differ from those of the file's own head)"
        );
        assert!(plan.lines().contains(&line), "{:?}", plan.lines());
    }
    let refused = |facts: &ModelFacts, asked: &str| {
        let flags = settings(&[("head", asked)], &[]);
        let error = plan(&host("desktop-8c16t"), facts, &flags).unwrap_err();
        (error.to_string(), error.hint().unwrap())
    };
    let small = ModelFacts {
        head_type: TensorType::Q6K,
        ..facts_2b()
    };
    let (message, hint) = refused(&small, "q8_0");
    assert_eq!(
        message,
        "the output head is Q6_K in the file, a head of `q8_0` is made from F32, F16 or BF16 (flag --head)"
    );
    assert_eq!(hint, "`--head full` reads it as it is in the file");
    let narrow = ModelFacts {
        n_embd: 1664,
        ..facts_2b()
    };
    let (message, hint) = refused(&narrow, "q6_k");
    assert_eq!(
        message,
        "the output head has rows of 1664 weights, `q6_k` takes multiples of 256 (flag --head)"
    );
    assert!(hint.starts_with("`--head q8_0`"), "{hint}");
    let odd = ModelFacts {
        n_embd: 1650,
        ..facts_2b()
    };
    let (message, hint) = refused(&odd, "q8_0");
    assert!(message.contains("1650") && message.contains("multiples of 32"));
    assert!(!hint.contains("q8_0"), "{hint}");
}

#[test]
fn large_weights_move_into_huge_pages_where_there_are_any() {
    let weights = |host: &Host, facts: &ModelFacts, flags: &[(&'static str, &str)]| {
        let plan = plan(host, facts, &settings(flags, &[])).unwrap();
        (plan.weights.value, plan.weights.because.to_string())
    };
    let mut host = host("desktop-8c16t");
    let facts = facts_2b();
    for mode in ["madvise", "always"] {
        host.memory.huge_pages = Some(mode.to_owned());
        let (home, because) = weights(&host, &facts, &[]);
        assert_eq!(home, WeightsHome::HugePages);
        assert!(
            because.ends_with("MB are read for every token"),
            "{because}"
        );
    }
    let (home, _) = weights(&host, &facts, &[("weights", "mapped")]);
    assert_eq!(home, WeightsHome::Mapped);
    let (home, because) = weights(&host, &facts, &[("use-case", "memory_efficient")]);
    let expected = (WeightsHome::Mapped, "use case memory_efficient".to_owned());
    assert_eq!((home, because), expected);
    for mode in [None, Some("never".to_owned())] {
        host.memory.huge_pages = mode;
        assert_eq!(weights(&host, &facts, &[]).0, WeightsHome::Mapped);
        let asked = weights(&host, &facts, &[("weights", "huge_pages")]);
        assert_eq!(asked.0, WeightsHome::HugePages);
    }
}

#[test]
fn a_wrong_model_size_is_a_warning() {
    assert!(
        planned("desktop-8c16t", &[("model-size", "medium")])
            .unwrap()
            .warnings
            .is_empty()
    );
    let plan = planned("desktop-8c16t", &[("model-size", "small")]).unwrap();
    assert!(
        plan.warnings[0]
            .what
            .starts_with("the model is medium (2.4B parameters), not small")
    );
}

/// A machine nobody built.
fn random_host(rng: &mut StdRng, base: &Host) -> Host {
    let cores = rng.random_range(1..=24);
    let smt = rng.random_range(1..=2);
    let small_from = if rng.random_bool(0.3) {
        rng.random_range(0..=cores)
    } else {
        cores
    };
    let count = cores * smt;
    let cpus = (0..count).map(|id| {
        let core = id % cores;
        LogicalCpu {
            id,
            package: Some(0),
            siblings: rng
                .random_bool(0.95)
                .then(|| (0..smt).map(|thread| thread * cores + core).collect()),
            kind: if core < small_from {
                CoreKind::Performance
            } else {
                CoreKind::Efficiency
            },
            capacity: None,
            max_khz: None,
            node: Some(0),
        }
    });
    let cpus: Vec<LogicalCpu> = cpus.collect();
    let n_nodes = rng.random_range(1..=3);
    let nodes = (0..n_nodes).map(|node| Node {
        id: node,
        cpus: (0..count)
            .filter(|id| id % cores % n_nodes == node)
            .collect(),
        total_bytes: None,
        available_bytes: rng
            .random_bool(0.8)
            .then(|| rng.random_range(256 << 20..64 << 30)),
    });
    let nodes: Vec<Node> = nodes.filter(|node| !node.cpus.is_empty()).collect();
    let topology = Topology {
        cpus,
        nodes,
        ..Topology::default()
    };
    let subset = |rng: &mut StdRng, share: f64| -> Option<CpuSet> {
        let set: CpuSet = (0..count).filter(|_| rng.random_bool(share)).collect();
        Some(set).filter(|set| !set.is_empty())
    };
    let affinity = subset(rng, 0.8);
    let at = std::path::PathBuf::from("/limit");
    Host {
        topology,
        affinity,
        limits: Limits {
            version: Some(2),
            cpuset: if rng.random_bool(0.3) {
                subset(rng, 0.5)
            } else {
                None
            },
            quota: rng.random_bool(0.4).then(|| Quota {
                quota_us: rng.random_range(10_000..3_000_000),
                period_us: 100_000,
                at: at.clone(),
            }),
            memory: rng.random_bool(0.5).then(|| MemoryLimit {
                bytes: rng.random_range(64 << 20..16 << 30),
                at,
            }),
            swap: None,
        },
        memory: Memory {
            available_bytes: rng
                .random_bool(0.95)
                .then(|| rng.random_range(256 << 20..64 << 30)),
            ..Memory::default()
        },
        container: rng.random_bool(0.3).then(|| "/.dockerenv".to_owned()),
        ..base.clone()
    }
}

fn random_flags(rng: &mut StdRng) -> Vec<(&'static str, String)> {
    let mut flags = Vec::new();
    if rng.random_bool(0.3) {
        flags.push(("threads", rng.random_range(1..40).to_string()));
    }
    if rng.random_bool(0.2) {
        flags.push(("threads-batch", rng.random_range(1..40).to_string()));
    }
    if rng.random_bool(0.2) {
        flags.push(("parallel", rng.random_range(1..16).to_string()));
    }
    if rng.random_bool(0.2) {
        flags.push(("ctx-size", rng.random_range(256..16384).to_string()));
    }
    if rng.random_bool(0.3) {
        let cases = ["high_performance", "balanced", "memory_efficient"];
        flags.push(("use-case", cases[rng.random_range(0..3)].to_owned()));
    }
    flags
}

#[test]
fn on_any_machine_limits_hold_and_reasons_are_given() {
    let (facts, base) = (facts_2b(), host("raspberry-pi-5"));
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let host = random_host(&mut rng, &base);
        let flags = random_flags(&mut rng);
        let flags: Vec<(&'static str, &str)> = flags
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let settings = settings(&flags, &[]);
        match plan(&host, &facts, &settings) {
            Ok(plan) => check(&host, &settings, &plan, seed),
            Err(PlanError::Memory { memory, .. }) => {
                let budget = memory.budget.clone().unwrap();
                assert!(memory.total_bytes() > budget.bytes, "seed {seed}");
            }
            Err(PlanError::Context { tokens, .. }) => assert!(tokens < 16, "seed {seed}"),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

fn check(host: &Host, settings: &Settings, plan: &Plan, seed: u64) {
    let allowed = host.allowed_cpus().unwrap();
    let (decode, prefill) = (&plan.decode_cpus.value, &plan.prefill_cpus.value);
    assert!(!decode.is_empty(), "seed {seed}");
    assert!(
        prefill.starts_with(decode),
        "seed {seed}: {prefill:?} {decode:?}"
    );
    assert!(
        prefill.iter().all(|cpu| allowed.contains(*cpu)),
        "seed {seed}: {prefill:?}"
    );
    assert_eq!(
        prefill.iter().collect::<BTreeSet<_>>().len(),
        prefill.len(),
        "seed {seed}: a CPU twice"
    );
    let quota = host
        .limits
        .quota
        .as_ref()
        .map_or(usize::MAX, Quota::threads);
    if settings.threads.value.is_none() {
        assert!(decode.len() <= quota, "seed {seed}");
        let core = |cpu: &usize| {
            host.topology
                .cpus
                .iter()
                .find(|c| c.id == *cpu)
                .unwrap()
                .core()
        };
        assert_eq!(
            decode.iter().map(core).collect::<BTreeSet<_>>().len(),
            decode.len(),
            "seed {seed}: a core twice"
        );
        if let Reason::OneNode { node, .. } = plan.decode_cpus.because {
            let node = host.topology.nodes.iter().find(|n| n.id == node).unwrap();
            let near = |cpu: &usize| node.cpus.contains(*cpu);
            assert!(decode.iter().all(near), "seed {seed}: {decode:?}");
            assert!(plan.pin.value, "seed {seed}: a node without pinning");
        }
        if settings.threads_batch.value.is_none() {
            assert!(prefill.len() <= quota, "seed {seed}");
        }
    }
    assert!(
        !(plan.pin.value && host.limits.quota.is_some()),
        "seed {seed}: pinned under a quota"
    );
    if let Some(budget) = &plan.memory.budget {
        assert!(plan.memory.total_bytes() <= budget.bytes, "seed {seed}");
        let limit = host
            .limits
            .memory
            .as_ref()
            .map_or(u64::MAX, |limit| limit.bytes);
        assert!(plan.memory.total_bytes() < limit, "seed {seed}");
    }
    let asked = settings.parallel.value;
    assert!(
        asked.is_none_or(|slots| slots == plan.slots.value),
        "seed {seed}: slots asked for were changed"
    );
    assert!(
        plan.slots.value >= 1 && plan.slot_context.value >= 16,
        "seed {seed}"
    );
    for line in plan.lines() {
        assert!(
            !line.contains("()") && line.contains('('),
            "seed {seed}: no reason in `{line}`"
        );
    }
}
