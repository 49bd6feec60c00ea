//! `bitnet-launch`: parse, dispatch, exit code. 0 done, 1 failed, 2 wrong usage.

mod bench;
mod chat;
mod cli;
mod connections;
mod convert;
mod demo;
mod doctor;
mod engine_main;
mod external;
mod file_stamp;
mod health;
mod host;
mod inspect;
mod interrupt;
mod listen;
mod llama_argv;
mod logging;
mod man;
mod models;
mod nodes;
mod perplexity;
mod plan;
mod reload;
mod reload_client;
mod sandbox;
mod serve;
mod settings;
mod startup;
mod status;
mod supervise;
mod synth;
mod systemd;
mod tune;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, ServeArgs, Task};
use models::error::PullError;
use settings::{Dialect, Flags, Settings, SettingsError, Source, Sources};

/// Version of the program.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit this program was built from, or `unknown`; stamped by `build.rs`.
pub(crate) const COMMIT: &str = env!("BITNET_COMMIT");
/// The version as one number, 10203 for 1.2.3, as llama-server counts its builds; stamped by `build.rs`.
pub(crate) const BUILD_NUMBER: &str = env!("BITNET_BUILD_NUMBER");

fn main() -> ExitCode {
    match dispatch(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    }
}

/// `error: …` with the chain of causes, then `hint: …` if there is a next step.
fn report(error: &anyhow::Error) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "error: {error:#}");
    if let Some(hint) = startup::hint(error) {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

/// Values that can't be read are wrong usage; so are impossible wishes. A download that was stopped ends as by the signal.
/// Everything else failed.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let usage = error
        .chain()
        .any(|cause| match cause.downcast_ref::<SettingsError>() {
            Some(
                SettingsError::Bad { .. }
                | SettingsError::File { .. }
                | SettingsError::Refused { .. },
            ) => true,
            Some(_) => false,
            None => {
                matches!(
                    cause.downcast_ref(),
                    Some(
                        plan::PlanError::Kernel { .. }
                            | plan::PlanError::Cpus { .. }
                            | plan::PlanError::Context { .. }
                            | plan::PlanError::Head { .. }
                    )
                ) || matches!(
                    cause.downcast_ref(),
                    Some(PullError::Reference { .. } | PullError::Variable { .. })
                ) || matches!(
                    cause.downcast_ref(),
                    Some(llama_argv::ArgvError::Foreign(_))
                )
            }
        });
    let stopped = |cause: &&(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(PullError::Stopped { .. }))
    };
    if error.chain().any(|cause| stopped(&cause)) {
        return ExitCode::from(130);
    }
    ExitCode::from(if usage { 2 } else { 1 })
}

fn dispatch(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    if called_as(&args, "llama-server") {
        return llama_server(args.into_iter().skip(1));
    }
    let takes_all = args.get(1).is_some_and(|arg| arg == "llama-server");
    if let Some(flag) =
        llama_argv::short_flag(args.get(1..).unwrap_or_default()).filter(|_| !takes_all)
    {
        return Err(llama_argv::ArgvError::Foreign(flag).into());
    }
    let cli = Cli::parse_from(args);
    match cli.command {
        None => serve(cli.serve),
        Some(Task::Serve(args)) => serve(args),
        Some(Task::LlamaServer { argv }) => llama_server(argv),
        Some(Task::Doctor(args)) => doctor::run(args),
        Some(Task::Pull(args)) => models::pull::run(args, &settings::environment()),
        Some(Task::Models(args)) => models::list::run(&args, &settings::environment()),
        Some(Task::SetupModel(args)) => models::setup::run(&args, &settings::environment()),
        Some(Task::Chat(args)) => chat::run(args, &settings::environment()),
        Some(Task::ChatServer(args)) => {
            chat::server::end_with_parent()?;
            serve(args)
        }
        Some(Task::NodeServer(args)) => nodes::serve_node(args, node_server),
        Some(Task::Bench(args)) => bench::run(&args),
        Some(Task::Tune(args)) => tune::run(&args),
        Some(Task::Health(args)) => health::run(&args, &settings::environment()),
        Some(Task::Reload(args)) => reload_client::run(&args, &settings::environment()),
        Some(Task::Perplexity(args)) => perplexity::run(args),
        Some(Task::Convert(args)) => convert::run(&args),
        Some(Task::Inspect(args)) => inspect::run(&args),
        Some(Task::Synth(args)) => synth::run(&args),
        Some(Task::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bitnet-launch", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Task::Man { dir }) => man::run(&dir),
        Some(Task::Engine(args)) => engine_main::run(&args),
        Some(Task::EngineExec(args)) => external::engine_exec(&args),
    }
}

/// Whether the program was called under this name, with or without `.exe`.
fn called_as(args: &[OsString], name: &str) -> bool {
    let stem = args
        .first()
        .and_then(|program| Path::new(program).file_stem());
    stem.is_some_and(|stem| stem == name)
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let sources = Sources::new(args.flags, settings::environment(), Dialect::Launch);
    let settings = match sources.read() {
        Err(SettingsError::NotPulled { name, .. })
            if models::locate::offer(&name, &sources.env)? =>
        {
            sources.read()?
        }
        settings => settings?,
    };
    if args.check {
        return check(&settings);
    }
    start(settings, sources)
}

fn start(settings: Settings, sources: Sources) -> anyhow::Result<ExitCode> {
    logging::init(&settings)?;
    match settings.external.exec.value {
        _ if settings.per_node.value => nodes::run(settings, sources),
        true => external::exec(&settings, &settings::environment()),
        false => serve::run(settings, sources),
    }
}

/// One of several servers; what starts them is settled.
fn node_server(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let sources = Sources::new(args.flags, settings::environment(), Dialect::Launch);
    let settings = sources.read()?;
    logging::init(&settings)?;
    serve::run(settings, sources)
}

/// Prints what would happen.
fn check(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if settings.per_node.value {
        for line in nodes::lines(settings)? {
            writeln!(out, "{line}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(prepared) = external::prepare(settings, &settings::environment())? {
        for line in settings.notices.iter().chain(&prepared.lines()) {
            writeln!(out, "{line}")?;
        }
        for warning in settings.warnings.iter().chain(prepared.warnings()) {
            writeln!(out, "warning: {warning}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let prepared = startup::prepare(settings)?;
    for line in settings.notices.iter().chain(&prepared.lines(settings)) {
        writeln!(out, "{line}")?;
    }
    let warnings = prepared.plan.warnings.iter().map(ToString::to_string);
    for warning in settings.warnings.iter().cloned().chain(warnings) {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// With llama-server's flags, defaults and exit codes.
fn llama_server(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let args = args
        .into_iter()
        .map(|arg| arg.to_string_lossy().into_owned());
    let flags: Flags = match llama_argv::parse(args)? {
        llama_argv::Request::Serve(flags) => flags,
        llama_argv::Request::Help => {
            std::io::stdout().write_all(llama_argv::help().as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        llama_argv::Request::Version => {
            eprintln!("version: {BUILD_NUMBER} ({COMMIT})");
            eprintln!(
                "built with {} for {}",
                env!("BITNET_RUSTC"),
                env!("BITNET_TARGET")
            );
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut env = settings::environment();
    if flags.offline {
        env.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
    }
    let sources = Sources::new(flags, env, Dialect::LlamaServer);
    let settings = match sources.read() {
        Err(SettingsError::NotPulled { name, source_ }) if fetched(&name, &source_, &sources)? => {
            sources.read()?
        }
        settings => settings?,
    };
    start(settings, sources)
}

/// Fetches a model that isn't here: at once where llama-server does, else if somebody at a terminal says so.
fn fetched(name: &str, source: &Source, sources: &Sources) -> anyhow::Result<bool> {
    let is_repository = match source {
        Source::Flag(flag) => flag != "-m" && flag != "--model",
        Source::Environment(name) => name == "LLAMA_ARG_HF_REPO",
        _ => false,
    };
    match is_repository {
        true => models::locate::fetch(name, &sources.env),
        false => models::locate::offer(name, &sources.env),
    }
}
