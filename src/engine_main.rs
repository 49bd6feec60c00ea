//! The engine process: `bitnet-launch engine`, started by the supervisor with one end of a socket pair as its standard
//! input.
//!
//! Its life belongs to the server: it ends with its parent, and with the control socket. Signals that a terminal or a
//! service manager sends to all processes at once are left to the server, which lets running requests finish first.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use bitnet_model::engine::{self, RunError};
use bitnet_model::protocol::{EngineConfig, ModelSource};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;

use crate::cli::EngineArgs;
use crate::demo;
use crate::sandbox::{self, Policy};

/// Out of memory, the kernel should end the engine, which is replaced, rather than the server.
pub(crate) const OOM_SCORE_ADJ: &str = "500";

/// Runs an engine on standard input until the server hangs up.
///
/// # Errors
/// When standard input is no socket; when the control socket breaks or the engine panics.
pub(crate) fn run(args: &EngineArgs) -> anyhow::Result<ExitCode> {
    log_to_stderr();
    let control = control_socket()?;
    tie_to_parent();
    take_priority(args.nice);
    let reader = control.try_clone()?;
    let demo = || Some(demo::bytes());
    match engine::run(reader, control, demo, |config| confine(args, config)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The server has been told and tells the user.
        Err(RunError::Load(_)) => Ok(ExitCode::FAILURE),
        Err(error) => Err(error.into()),
    }
}

/// Model files come from strangers: nothing of one is read before this.
fn confine(args: &EngineArgs, config: &EngineConfig) {
    if args.unconfined {
        tracing::info!("the engine process is not confined, as asked for by `--sandbox off`");
        return;
    }
    let began = Instant::now();
    let confined = sandbox::confine(Policy {
        model: match &config.model {
            ModelSource::File(path) => Some(path),
            ModelSource::Demo => None,
        },
        writable: args.slot_folder.as_deref(),
    });
    tracing::debug!("confined in {} us", began.elapsed().as_micros());
    match confined.is_whole() {
        true => tracing::info!("engine process confined: {confined}"),
        false => tracing::warn!("engine process confined in part: {confined}"),
    }
}

/// `LEVEL message` per line, as the supervisor reads it; the level is the server's, in `RUST_LOG`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .try_init();
}

/// Threads started later have the same.
fn take_priority(nice: i32) {
    if nice != 0
        && let Err(error) = rustix::process::setpriority_process(None, nice)
    {
        tracing::warn!(
            "the priority stays as it is (nice value {nice} is refused: {error}); CAP_SYS_NICE or LimitNICE= would allow it"
        );
    }
}

fn control_socket() -> anyhow::Result<UnixStream> {
    let stdin = io::stdin();
    let not_ours =
        "standard input is no control socket; `engine` is started by `bitnet-launch serve`";
    anyhow::ensure!(!stdin.is_terminal(), not_ours);
    let control: OwnedFd = stdin.as_fd().try_clone_to_owned()?;
    let control = UnixStream::from(control);
    control.peer_addr().context(not_ours)?;
    Ok(control)
}

/// None of this is needed to work: what the system refuses is left out.
fn tie_to_parent() {
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        tracing::debug!("no parent-death signal: {error}");
    }
    let servers = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    if let Err(error) = servers.thread_block() {
        tracing::debug!("cannot leave signals to the server: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::debug!("oom_score_adj stays: {error}");
    }
}
