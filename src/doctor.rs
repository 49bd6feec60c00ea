//! `bitnet-launch doctor`: what this machine offers, what would be chosen and why, and what to improve.
//!
//! With `--host-root` it looks at another machine's report, written there with `--save-host`; kernels are those of the CPU
//! that runs this program, all the same.

mod warnings;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::DoctorArgs;
use crate::external;
use crate::host::{CpuSet, Host, Root};
use crate::plan::{Choice, Plan, Warning, mb, weights_name};
use crate::sandbox::{self, Confined};
use crate::settings::{Dialect, Environment, Settings, environment};
use crate::startup::{self, Prepared};

/// Prints the report: exit code 0 if the model could be served, 1 if not.
///
/// # Errors
/// When settings, or the machine's report, can't be read.
pub(crate) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let environment = environment();
    let settings = Settings::read(args.serve.flags, &environment, Dialect::Launch)?;
    let root = match (&args.host_root, &args.save_host) {
        (Some(path), _) => Root::open(path)
            .with_context(|| format!("cannot read the machine at `{}`", path.display()))?,
        (None, Some(_)) => Root::recording(),
        (None, None) => Root::live(),
    };
    let host = match args.host_root {
        Some(_) => Host::read(&root),
        None => Host::detect_by(&root),
    };
    let mut report = Report::new(settings, host, &root);
    report.is_here = args.host_root.is_none();
    if report.is_here {
        report
            .warnings
            .extend(warnings::of_this_process(&environment));
        report.look_at_engines(&environment);
    }
    if let Some(path) = &args.save_host {
        std::fs::write(path, root.report())
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{:#}", report.json())?,
        false => report.table(&mut out)?,
    }
    Ok(ExitCode::from(u8::from(report.fails())))
}

struct Report {
    settings: Settings,
    host: Host,
    outcome: anyhow::Result<Prepared>,
    warnings: Vec<Warning>,
    /// It is about the machine that it is made on.
    is_here: bool,
    /// Other llama-servers on this machine.
    engines: Vec<String>,
    /// The plan for the one that was asked for, line by line.
    engine: Option<anyhow::Result<Vec<String>>>,
}

impl Report {
    fn new(settings: Settings, host: Host, root: &Root) -> Report {
        let outcome = startup::prepare_on(host.clone(), &settings);
        let mut warnings = warnings::of_host(&host, root);
        warnings.extend(warnings::of_settings(&settings, root));
        if let Ok(prepared) = &outcome {
            warnings.extend(prepared.plan.warnings.iter().cloned());
        }
        Report {
            settings,
            host,
            outcome,
            warnings,
            is_here: false,
            engines: Vec::new(),
            engine: None,
        }
    }

    fn look_at_engines(&mut self, environment: &Environment) {
        self.engines = external::found_here(environment);
        if self.settings.external.is_wanted() {
            let prepared = external::prepare(&self.settings, environment);
            let lines = prepared.map(|prepared| prepared.map(|engine| engine.report()));
            self.engine = lines.transpose();
        }
    }

    /// What was asked for can't be served.
    fn fails(&self) -> bool {
        match &self.engine {
            Some(engine) => engine.is_err(),
            None => self.outcome.is_err(),
        }
    }

    fn table(&self, out: &mut impl Write) -> io::Result<()> {
        section(out, "Machine", &machine_rows(&self.host))?;
        section(out, "Limits", &limit_rows(&self.host))?;
        section(out, "Kernels", &[("available", list(&self.host.kernels))])?;
        section(
            out,
            "Engine process",
            &confinement_rows(&self.confinement()),
        )?;
        match &self.outcome {
            Ok(prepared) => {
                section(out, "Model", &model_rows(prepared, &self.settings))?;
                section(out, "Plan", &plan_rows(&prepared.plan))?;
            }
            Err(error) => {
                writeln!(out, "\nPlan\n  error: {error:#}")?;
                if let Some(hint) = startup::hint(error) {
                    writeln!(out, "  hint: {hint}")?;
                }
            }
        }
        if !self.engines.is_empty() {
            let found = self.engines.iter().map(|engine| ("found", engine.clone()));
            section(out, "Other engines", &found.collect::<Vec<_>>())?;
        }
        match &self.engine {
            Some(Ok(lines)) => {
                writeln!(out, "\nPlan for the other engine")?;
                for line in lines {
                    writeln!(out, "  {line}")?;
                }
            }
            Some(Err(error)) => {
                writeln!(out, "\nPlan for the other engine\n  error: {error:#}")?;
                if let Some(hint) = startup::hint(error) {
                    writeln!(out, "  hint: {hint}")?;
                }
            }
            None => {}
        }
        writeln!(out, "\nTo improve")?;
        if self.warnings.is_empty() && self.settings.warnings.is_empty() {
            writeln!(out, "  nothing")?;
        }
        for warning in &self.settings.warnings {
            writeln!(out, "  - {warning}")?;
        }
        for Warning { what, todo } in &self.warnings {
            writeln!(out, "  - {what}\n    {todo}")?;
        }
        Ok(())
    }

    /// Tried out on this machine; of another one nothing is known.
    fn confinement(&self) -> Option<Confined> {
        (self.is_here && self.settings.sandbox.value).then(sandbox::tried)
    }

    fn json(&self) -> Value {
        let warnings: Vec<Value> = self
            .warnings
            .iter()
            .map(|w| json!({"what": w.what, "todo": w.todo}))
            .collect();
        let (model, plan, error) = match &self.outcome {
            Ok(prepared) => (
                model_json(prepared, &self.settings),
                plan_json(&prepared.plan),
                Value::Null,
            ),
            Err(error) => {
                let error = json!({"message": format!("{error:#}"), "hint": startup::hint(error)});
                (Value::Null, Value::Null, error)
            }
        };
        json!({
            "version": crate::VERSION,
            "host": host_json(&self.host),
            "kernels": self.host.kernels.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "engine_process": confinement_json(self.confinement()),
            "model": model,
            "plan": plan,
            "error": error,
            "engines": self.engines,
            "engine": match &self.engine {
                Some(Ok(lines)) => json!({"plan": lines}),
                Some(Err(error)) => json!({"error": format!("{error:#}"), "hint": startup::hint(error)}),
                None => Value::Null,
            },
            "settings_warnings": self.settings.warnings,
            "warnings": warnings,
        })
    }
}

type Row = (&'static str, String);

fn section(out: &mut impl Write, title: &str, rows: &[Row]) -> io::Result<()> {
    let first = if title == "Machine" { "" } else { "\n" };
    writeln!(out, "{first}{title}")?;
    rows.iter()
        .try_for_each(|(name, value)| writeln!(out, "  {name:<18} {value}"))
}

/// What is unknown says so.
fn known<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

fn yes_no(value: Option<bool>) -> String {
    known(value.map(|yes| if yes { "yes" } else { "no" }))
}

fn list<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn megabytes(bytes: Option<u64>) -> String {
    known(bytes.map(|bytes| format!("{} MB", mb(bytes))))
}

fn machine_rows(host: &Host) -> Vec<Row> {
    let (cpu, topology, memory) = (&host.cpu, &host.topology, &host.memory);
    let hybrid = match topology.hybrid() {
        true => " (performance and efficiency cores)",
        false => "",
    };
    let caches: Vec<String> = topology
        .caches
        .iter()
        .map(|cache| {
            let kind = cache.kind.chars().next().filter(|kind| *kind != 'U');
            let size = format!(
                "L{}{} {} KB",
                cache.level,
                kind.map_or(String::new(), |k| k.to_lowercase().to_string()),
                cache.bytes >> 10
            );
            cache
                .count
                .map_or(size.clone(), |count| format!("{count} x {size}"))
        })
        .collect();
    let mut rows = vec![
        ("processor", known(cpu.model.clone())),
        ("vendor", known(cpu.vendor.clone())),
        ("architecture", cpu.arch.to_owned()),
        (
            "instruction sets",
            known(cpu.features.as_ref().map(|features| features.join(" "))),
        ),
        ("microcode", known(cpu.microcode.clone())),
        (
            "virtual machine",
            match &cpu.hypervisor_name {
                Some(name) => format!("yes ({name})"),
                None => yes_no(cpu.hypervisor),
            },
        ),
        ("operating system", known(host.os_release.clone())),
        (
            "physical cores",
            format!("{}{hybrid}", known(topology.physical_cores())),
        ),
        (
            "logical CPUs",
            known(topology.online().map(|online| online.len())),
        ),
        ("SMT", yes_no(topology.smt())),
        ("sockets", known(topology.packages())),
        ("NUMA nodes", known(topology.numa_nodes())),
        (
            "caches",
            known(Some(caches.join(", ")).filter(|text| !text.is_empty())),
        ),
        (
            "highest clock",
            known(topology.max_khz().map(|khz| format!("{} MHz", khz / 1000))),
        ),
        ("governor", known(topology.governor.clone())),
        (
            "slowed by heat",
            known(host.throttle.thermal_events.map(|n| format!("{n} times"))),
        ),
        (
            "energy",
            match &host.energy {
                Ok(source) => source.clone(),
                Err(reason) => format!("unavailable: {reason}"),
            },
        ),
        (
            "memory",
            format!(
                "{}, {} available",
                megabytes(memory.total_bytes),
                megabytes(memory.available_bytes)
            ),
        ),
        ("swap in use", megabytes(memory.swap_used_bytes)),
        ("huge pages", known(memory.huge_pages.clone())),
        (
            "pages set aside",
            known(
                memory
                    .reserved_pages
                    .map(|(all, free)| format!("{all}, {free} free")),
            ),
        ),
        (
            "lockable memory",
            match memory.lock_limit_bytes {
                Some(u64::MAX) => "all".to_owned(),
                bytes => megabytes(bytes),
            },
        ),
    ];
    rows.extend(
        cpu.emulator
            .clone()
            .map(|emulator| ("emulated by", emulator)),
    );
    rows
}

fn limit_rows(host: &Host) -> Vec<Row> {
    let limits = &host.limits;
    vec![
        (
            "container",
            host.container
                .clone()
                .unwrap_or_else(|| "none seen".to_owned()),
        ),
        (
            "control groups",
            known(limits.version.map(|version| format!("version {version}"))),
        ),
        ("affinity mask", known(host.affinity.as_ref())),
        (
            "cpuset",
            limits
                .cpuset
                .as_ref()
                .map_or_else(|| "none".to_owned(), CpuSet::to_string),
        ),
        ("allowed CPUs", known(host.allowed_cpus())),
        (
            "CPU quota",
            limits.quota.as_ref().map_or_else(
                || "none".to_owned(),
                |q| format!("{q} ({})", q.at.display()),
            ),
        ),
        (
            "memory limit",
            limits.memory.as_ref().map_or_else(
                || "none".to_owned(),
                |m| format!("{} MB ({})", m.bytes >> 20, m.at.display()),
            ),
        ),
        (
            "swap limit",
            limits.swap.as_ref().map_or_else(
                || "none".to_owned(),
                |m| format!("{} MB ({})", m.bytes >> 20, m.at.display()),
            ),
        ),
        (
            "throttled",
            host.throttle.quota.as_ref().map_or_else(
                || "no quota".to_owned(),
                |q| {
                    format!(
                        "in {} of {} periods, {:.1} s in all",
                        q.throttled_periods,
                        q.periods,
                        q.throttled.as_secs_f64()
                    )
                },
            ),
        ),
    ]
}

fn confinement_rows(confined: &Option<Confined>) -> Vec<Row> {
    let Some(Confined { files, calls }) = confined else {
        return vec![("confined", "no".to_owned())];
    };
    let calls = match calls {
        Ok(()) => "filtered by seccomp: no sockets, programs or processes".to_owned(),
        Err(why) => format!("not filtered: {why}"),
    };
    let files = match files {
        Ok(version) => {
            format!("by Landlock, version {version}: the model to read, saved slots to write")
        }
        Err(why) => format!("not restricted: {why}"),
    };
    vec![("system calls", calls), ("files", files)]
}

fn confinement_json(confined: Option<Confined>) -> Value {
    match confined {
        None => json!({"seccomp": false, "landlock": null}),
        Some(confined) => json!({
            "seccomp": confined.calls.is_ok(), "landlock": confined.files.as_ref().ok(),
        }),
    }
}

fn model_rows(prepared: &Prepared, settings: &Settings) -> Vec<Row> {
    let facts = &prepared.facts;
    vec![
        (
            "file",
            format!(
                "{} ({})",
                startup::described(&settings.model.value),
                settings.model.source
            ),
        ),
        ("name", known(facts.name.clone())),
        ("architecture", facts.architecture.to_string()),
        ("parameters", facts.size_label()),
        ("context", format!("{} tokens", facts.context_length)),
        (
            "ternary weights",
            format!("{} MB as {}", mb(facts.weight_bytes), facts.ternary_type),
        ),
        (
            "output head",
            format!("{} MB as {}", mb(facts.head_bytes), facts.head_type),
        ),
    ]
}

fn plan_rows(plan: &Plan) -> Vec<Row> {
    let cpus = |cpus: &Vec<usize>| {
        let set: CpuSet = cpus.iter().copied().collect();
        format!("{} on CPUs {set}", cpus.len())
    };
    vec![
        ("kernel", because(&plan.kernel, ToString::to_string)),
        ("threads", because(&plan.decode_cpus, cpus)),
        ("prompt threads", because(&plan.prefill_cpus, cpus)),
        ("pinned", because(&plan.pin, |pin| yes_no(Some(*pin)))),
        ("slots", because(&plan.slots, ToString::to_string)),
        (
            "context per slot",
            because(&plan.slot_context, |n| format!("{n} tokens")),
        ),
        (
            "prompt step",
            because(&plan.prefill_batch, |n| format!("{n} tokens")),
        ),
        (
            "cache type",
            because(&plan.kv_type, |kv| kv.name().to_owned()),
        ),
        (
            "output head",
            because(&plan.head, |head| head.name().to_owned()),
        ),
        (
            "weights",
            because(&plan.weights, |home| weights_name(*home).to_owned()),
        ),
        (
            "locked",
            because(&plan.mlock, |locked| yes_no(Some(*locked))),
        ),
        ("memory", plan.memory.to_string()),
    ]
}

fn because<T>(choice: &Choice<T>, text: impl Fn(&T) -> String) -> String {
    format!("{} ({})", text(&choice.value), choice.because)
}

fn host_json(host: &Host) -> Value {
    let (cpu, topology, limits, memory) = (&host.cpu, &host.topology, &host.limits, &host.memory);
    let text = |set: Option<&CpuSet>| set.map(CpuSet::to_string);
    let caches: Vec<Value> = topology
        .caches
        .iter()
        .map(|c| json!({"level": c.level, "type": c.kind, "bytes": c.bytes, "count": c.count}))
        .collect();
    let nodes: Vec<Value> = topology
        .nodes
        .iter()
        .map(|n| {
            json!({"id": n.id, "cpus": n.cpus.to_string(), "total_bytes": n.total_bytes, "available_bytes": n.available_bytes})
        })
        .collect();
    json!({
        "cpu": {
            "arch": cpu.arch, "vendor": cpu.vendor, "model": cpu.model, "features": cpu.features,
            "microcode": cpu.microcode, "hypervisor": cpu.hypervisor,
            "hypervisor_name": cpu.hypervisor_name, "emulator": cpu.emulator,
        },
        "os_release": host.os_release,
        "topology": {
            "physical_cores": topology.physical_cores(), "logical_cpus": topology.online().map(|o| o.len()),
            "smt": topology.smt(), "hybrid": topology.hybrid(), "packages": topology.packages(),
            "numa_nodes": topology.numa_nodes(), "nodes": nodes, "max_khz": topology.max_khz(),
            "governor": topology.governor, "scaling_driver": topology.scaling_driver, "caches": caches,
        },
        "throttle": {
            "quota_periods": host.throttle.quota.as_ref().map(|q| q.periods),
            "quota_throttled_periods": host.throttle.quota.as_ref().map(|q| q.throttled_periods),
            "quota_throttled_seconds": host.throttle.quota.as_ref().map(|q| q.throttled.as_secs_f64()),
            "thermal_events": host.throttle.thermal_events,
        },
        "energy": {"source": host.energy.as_ref().ok(), "unavailable": host.energy.as_ref().err()},
        "limits": {
            "container": host.container, "cgroup_version": limits.version,
            "affinity": text(host.affinity.as_ref()), "cpuset": text(limits.cpuset.as_ref()),
            "allowed_cpus": text(host.allowed_cpus().as_ref()),
            "quota_cpus": limits.quota.as_ref().map(|q| q.cpus()),
            "memory_limit_bytes": limits.memory.as_ref().map(|m| m.bytes),
            "swap_limit_bytes": limits.swap.as_ref().map(|m| m.bytes),
        },
        "memory": {
            "total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes,
            "swap_total_bytes": memory.swap_total_bytes, "swap_used_bytes": memory.swap_used_bytes,
            "huge_pages": memory.huge_pages, "reserved_pages": memory.reserved_pages.map(|(all, _)| all),
            "reserved_pages_free": memory.reserved_pages.map(|(_, free)| free),
            "reserved_page_bytes": memory.reserved_page_bytes, "lock_limit_bytes": memory.lock_limit_bytes,
        },
    })
}

fn model_json(prepared: &Prepared, settings: &Settings) -> Value {
    let facts = &prepared.facts;
    let path = settings.model_path().map(|path| path.display().to_string());
    json!({
        "path": path, "source": settings.model.source.to_string(), "name": facts.name,
        "architecture": facts.architecture.to_string(), "parameters": facts.n_params,
        "context_length": facts.context_length, "file_bytes": facts.file_bytes,
        "notes": facts.notes,
    })
}

fn plan_json(plan: &Plan) -> Value {
    fn choice<T>(choice: &Choice<T>, value: Value) -> Value {
        json!({"value": value, "because": choice.because.to_string()})
    }
    let memory = &plan.memory;
    json!({
        "kernel": choice(&plan.kernel, json!(plan.kernel.value.to_string())),
        "decode_cpus": choice(&plan.decode_cpus, json!(plan.decode_cpus.value)),
        "prefill_cpus": choice(&plan.prefill_cpus, json!(plan.prefill_cpus.value)),
        "pin": choice(&plan.pin, json!(plan.pin.value)),
        "slots": choice(&plan.slots, json!(plan.slots.value)),
        "slot_context": choice(&plan.slot_context, json!(plan.slot_context.value)),
        "prefill_batch": choice(&plan.prefill_batch, json!(plan.prefill_batch.value)),
        "kv_type": choice(&plan.kv_type, json!(plan.kv_type.value.name())),
        "head": choice(&plan.head, json!(plan.head.value.name())),
        "weights": choice(&plan.weights, json!(weights_name(plan.weights.value))),
        "mlock": choice(&plan.mlock, json!(plan.mlock.value)),
        "memory": {
            "weights_bytes": memory.weights_bytes, "head_copies_bytes": memory.head_copies_bytes,
            "kv_bytes": memory.kv_bytes,
            "buffers_bytes": memory.buffers_bytes, "program_bytes": memory.program_bytes,
            "total_bytes": memory.total_bytes(), "budget_bytes": memory.budget.as_ref().map(|b| b.bytes),
        },
    })
}

#[cfg(test)]
mod tests;
