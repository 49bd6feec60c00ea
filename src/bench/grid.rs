//! The cells to measure: kernels × threads, each a plan as `serve` would make it with these flags.

use bitnet_model::facts::ModelFacts;
use bitnet_model::protocol::EngineConfig;

use super::report::Cell;
use super::{BenchArgs, Programme, engine_config};
use crate::host::Host;
use crate::plan::{Plan, plan};
use crate::settings::{Dialect, Flags, Settings, environment};
use crate::startup::decide;

/// One cell.
pub(super) struct Candidate {
    pub(super) plan: Plan,
    pub(super) config: EngineConfig,
    /// Asked for by `auto` in both lists.
    is_auto: bool,
}

impl Candidate {
    pub(super) fn name(&self) -> String {
        let threads = self.plan.threads();
        let auto = if self.is_auto { " (auto)" } else { "" };
        let s = if threads == 1 { "" } else { "s" };
        format!("{}, {threads} thread{s}{auto}", self.plan.kernel.value)
    }

    pub(super) fn empty_result(&self) -> Cell {
        Cell {
            name: self.name(),
            kernel: self.plan.kernel.value.to_string(),
            threads: self.plan.threads(),
            cpus: self.plan.decode_cpus.value.clone(),
            pinned: self.plan.pin.value,
            prefill_batch: self.plan.prefill_batch.value,
            ..Cell::default()
        }
    }
}

/// Settings of one cell; `None` leaves the choice to the plan.
pub(super) fn settings(
    args: &BenchArgs,
    kernel: Option<&str>,
    threads: Option<usize>,
) -> anyhow::Result<Settings> {
    let mut flags = Flags::default();
    let mut say = |name: &'static str, value: Option<String>| {
        flags
            .values
            .extend(value.map(|value| (name, value, format!("--{name}"))));
    };
    say("model", args.model.clone());
    say("head", args.head.clone());
    say("kv-type", args.kv_type.clone());
    say("spec", args.spec.clone());
    say("draft-max", args.draft_max.clone());
    say("cpu-affinity", args.cpu_affinity.clone());
    say("batch-size", args.batch_size.clone());
    say("kernel", kernel.map(str::to_owned));
    say("threads", threads.map(|n| n.to_string()));
    say("threads-batch", threads.map(|n| n.to_string()));
    Ok(Settings::read(flags, &environment(), Dialect::Launch)?)
}

/// All cells, without the same one twice.
pub(super) fn cells(
    args: &BenchArgs,
    host: &Host,
    facts: &ModelFacts,
    programme: &Programme,
) -> anyhow::Result<Vec<Candidate>> {
    let slots = programme.slots.last().copied().unwrap_or(1);
    let mut cells: Vec<Candidate> = Vec::new();
    for kernel in kernels(&args.kernels, host) {
        for threads in threads(&args.threads, host)? {
            let settings = settings(args, kernel.as_deref(), threads)?;
            let (plan, _) = match (&kernel, threads) {
                (None, None) => decide(host, facts, &settings)?,
                _ => (plan(host, facts, &settings)?, None),
            };
            if threads.is_some_and(|n| n != plan.threads()) {
                eprintln!(
                    "{} threads are left out: {} CPUs are allowed",
                    threads.unwrap_or(0),
                    plan.threads()
                );
                continue;
            }
            let config = engine_config(&plan, &settings, slots, programme.context());
            match cells.iter_mut().find(|cell| cell.config == config) {
                Some(same) => same.is_auto |= kernel.is_none() && threads.is_none(),
                None => cells.push(Candidate {
                    plan,
                    config,
                    is_auto: kernel.is_none() && threads.is_none(),
                }),
            }
        }
    }
    anyhow::ensure!(
        !cells.is_empty(),
        "no cell of the grid can be measured here"
    );
    Ok(cells)
}

/// `None` is automatic. `all` leaves out plain code where the CPU has better for the same packing.
fn kernels(list: &str, host: &Host) -> Vec<Option<String>> {
    let mut kernels = Vec::new();
    for name in list
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        match name {
            "auto" => kernels.push(None),
            "all" => kernels.extend(worth_measuring(host).into_iter().map(Some)),
            name => kernels.push(Some(name.to_owned())),
        }
    }
    kernels
}

/// Kernels of this machine by name, without plain code where there is better for the packing.
pub(crate) fn worth_measuring(host: &Host) -> Vec<String> {
    let has_better = |kernel: &bitnet_kernels::Kernel| {
        let of_packing = host
            .kernels
            .iter()
            .filter(|k| k.packing() == kernel.packing());
        kernel.isa() == bitnet_kernels::Isa::Scalar && of_packing.count() > 1
    };
    let worth = host.kernels.iter().filter(|kernel| !has_better(kernel));
    worth.map(ToString::to_string).collect()
}

fn threads(list: &str, host: &Host) -> anyhow::Result<Vec<Option<usize>>> {
    let all = host.allowed_cpus().map_or(1, |cpus| cpus.len());
    let mut threads = Vec::new();
    for item in list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let n = match item {
            "auto" => None,
            "N" | "n" => Some(all),
            number => Some(numbers(number, "--threads")?[0]),
        };
        if !threads.contains(&n) {
            threads.push(n);
        }
    }
    anyhow::ensure!(
        !threads.is_empty(),
        "`--threads {list}` names no number of threads"
    );
    Ok(threads)
}

/// `128,512`.
pub(super) fn numbers(text: &str, flag: &str) -> anyhow::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for item in text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let number: usize = item.parse().ok().filter(|n| *n <= 1 << 20).ok_or_else(|| {
            anyhow::anyhow!("`{flag}` is `{text}`, expected numbers such as 128,512")
        })?;
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::host;

    #[test]
    fn lists_are_read() {
        assert_eq!(numbers("128, 512,128", "-p").unwrap(), [128, 512]);
        let error = numbers("128,many", "-p").unwrap_err().to_string();
        assert!(error.contains("`-p` is `128,many`"), "{error}");
        let machine = host("desktop-8c16t");
        let found = threads("2,4,8,N,16", &machine).unwrap();
        assert_eq!(found, [Some(2), Some(4), Some(8), Some(16)]);
        assert_eq!(threads("auto", &machine).unwrap(), [None]);
        assert!(threads("", &machine).is_err());
    }

    #[test]
    fn all_kernels_are_those_worth_measuring() {
        let machine = host("desktop-8c16t");
        let names = worth_measuring(&machine);
        assert!(!names.is_empty());
        let scalar = names.iter().filter(|name| name.ends_with("/scalar"));
        assert!(scalar.count() < names.len() || machine.kernels.len() == names.len());
        let mut asked = kernels("auto,i2_s/avx2", &machine);
        assert_eq!(asked.pop().unwrap().as_deref(), Some("i2_s/avx2"));
        assert_eq!(asked, [None]);
    }
}
