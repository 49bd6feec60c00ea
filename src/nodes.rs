//! `serve --per-node`: one server per NUMA node. This process serves nothing itself; it starts the servers, restarts what ends, and
//! passes signals on.
//!
//! Each server is this binary again under the hidden command `node-server`, bound to its node's CPUs before it allocates anything, so
//! that the kernel takes its memory from its own node. It is a whole server with a port, an engine and metrics of its own.

mod replica;
mod share;

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use crate::cli::{NodeArgs, ServeArgs};
use crate::host::{CpuSet, Host};
use crate::serve::{self, Signals, Told};
use crate::settings::{Dialect, Settings, Sources, environment};
use crate::supervise::child::reap_orphans;
use crate::supervise::state::Failure;
use crate::{external, startup, systemd};
use replica::{Event, Replica};
use share::{Share, shares};

/// The first pause before a server is started again, and the longest.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// A server that ran for this long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(60);

/// Serves on every node until a signal ends it; on a machine with one node as ever.
///
/// # Errors
/// When the settings don't allow several servers, or one ends before it served for the first time.
pub(crate) fn run(settings: Settings, sources: Sources) -> anyhow::Result<ExitCode> {
    let shares = shares(&Host::detect(), &settings)?;
    if let [only] = &shares[..] {
        tracing::info!("one server: {only}");
        return serve::run(settings, sources);
    }
    refuse_inherited_sockets()?;
    for share in &shares {
        tracing::info!("{share}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the thread that watches the servers")?;
    runtime.block_on(async { Nodes::new(shares, &settings, &sources)?.live().await })
}

/// What would happen, as `--check` tells it.
///
/// # Errors
/// As [`run`].
pub(crate) fn lines(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let (host, env) = (Host::detect(), environment());
    let mut lines = settings.notices.clone();
    let warning = |text: &dyn std::fmt::Display| format!("warning: {text}");
    for share in shares(&host, settings)? {
        let mut near = host.clone();
        if share.node.is_some() {
            near.affinity = Some(share.cpus.clone());
        }
        let settings = share.planned_with(settings);
        lines.push(share.to_string());
        let told: Vec<String> = match external::prepare_on(near.clone(), &settings, &env)? {
            Some(prepared) => {
                let warnings = prepared.warnings().iter().map(|text| warning(text));
                prepared.lines().into_iter().chain(warnings).collect()
            }
            None => {
                let prepared = startup::prepare_on(near, &settings)?;
                let warnings = prepared.plan.warnings.iter().map(|text| warning(text));
                prepared
                    .lines(&settings)
                    .into_iter()
                    .chain(warnings)
                    .collect()
            }
        };
        lines.extend(told.into_iter().map(|line| format!("  {line}")));
    }
    lines.extend(settings.warnings.iter().map(|text| warning(text)));
    Ok(lines)
}

/// One of the servers: binds itself to its node and ends politely with its parent.
///
/// # Errors
/// As [`serve::run`].
pub(crate) fn serve_node(
    args: NodeArgs,
    serve: impl FnOnce(ServeArgs) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    set_pdeathsig(Signal::SIGTERM).context("cannot ask to end with the first process")?;
    anyhow::ensure!(
        getppid().as_raw() as u32 == args.node_parent,
        "the process that started this server is gone"
    );
    let cpus: CpuSet = args.node_cpus.parse()?;
    cpus.bind_this_thread()
        .with_context(|| format!("cannot run on CPUs {cpus}"))?;
    serve(args.serve)
}

fn refuse_inherited_sockets() -> Result<(), Failure> {
    match systemd::inherited(&environment())?.is_empty() {
        true => Ok(()),
        false => Err(Failure {
            reason: "the sockets that systemd passed can't be shared out among the servers of several nodes".to_owned(),
            hint: Some("disable the socket unit, and take `Requires=` and `SocketBindDeny=` out of the service".to_owned()),
        }),
    }
}

/// The servers, and what is asked of them.
struct Nodes {
    replicas: Vec<Replica>,
    events: UnboundedReceiver<Event>,
    /// For the threads that watch the servers.
    told: UnboundedSender<Event>,
    signals: Signals,
    /// Signals to end that came; after the first one nothing is started any more.
    ends: Vec<u8>,
    /// Exit code of a server that ended before it ever served.
    failed: Option<u8>,
}

impl Nodes {
    fn new(shares: Vec<Share>, settings: &Settings, sources: &Sources) -> anyhow::Result<Nodes> {
        anyhow::ensure!(
            sources.dialect == Dialect::Launch,
            "`--per-node` needs `bitnet-launch serve`, not llama-server's command line"
        );
        let (told, events) = unbounded_channel();
        let log = replica::Log::open(settings)?;
        let replicas = shares
            .into_iter()
            .enumerate()
            .map(|(n, share)| Replica::new(n, share, settings, &sources.flags, log.clone()))
            .collect();
        Ok(Nodes {
            replicas,
            events,
            told,
            signals: Signals::new().context("cannot listen to signals")?,
            ends: Vec::new(),
            failed: None,
        })
    }

    async fn live(mut self) -> anyhow::Result<ExitCode> {
        if let Some(every) = systemd::watchdog_interval(&environment()) {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(every).await;
                    systemd::alive();
                }
            });
        }
        let first: Vec<usize> = (0..self.replicas.len()).collect();
        for n in first {
            self.start(n)?;
        }
        loop {
            let next = self.next_start();
            tokio::select! {
                told = self.signals.next() => match told {
                    Told::End(number) => self.end(number),
                    Told::Reload => self.replicas.iter_mut().for_each(Replica::reload),
                },
                Some(event) = self.events.recv() => self.happened(event),
                () = until(next.map(|(at, _)| at)) => if let Some((_, n)) = next {
                    self.start_again(n);
                },
            }
            let is_leaving = !self.ends.is_empty() || self.failed.is_some();
            if is_leaving && self.replicas.iter().all(|replica| !replica.is_running()) {
                return self.exit_code();
            }
        }
    }

    fn start(&mut self, n: usize) -> anyhow::Result<()> {
        let replica = &mut self.replicas[n];
        replica
            .start(&self.told)
            .with_context(|| format!("cannot start the server of node {}", replica.node()))
    }

    /// As [`Nodes::start`]; a failure is met as an early end.
    fn start_again(&mut self, n: usize) {
        if let Err(error) = self.start(n) {
            tracing::error!("{error:#}");
            self.replicas[n].pause(Instant::now());
        }
    }

    /// When which server is to be started again.
    fn next_start(&self) -> Option<(Instant, usize)> {
        if !self.ends.is_empty() || self.failed.is_some() {
            return None;
        }
        let waiting = self.replicas.iter().enumerate();
        waiting
            .filter_map(|(n, replica)| Some((replica.start_at()?, n)))
            .min()
    }

    /// SIGTERM to all, each time: a server that is told twice ends at once.
    fn end(&mut self, number: u8) {
        if self.ends.is_empty() {
            systemd::stopping();
        }
        self.ends.push(number);
        self.terminate();
    }

    fn terminate(&self) {
        for replica in &self.replicas {
            replica.signal(Signal::SIGTERM);
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Ready(n) => {
                self.replicas[n].is_ready();
                if self.replicas.iter().all(Replica::was_ready) {
                    let count = self.replicas.len();
                    systemd::ready(&format!("{count} servers, one per NUMA node"));
                }
            }
            Event::Ended(n) => {
                let is_leaving = !self.ends.is_empty() || self.failed.is_some();
                let replica = &mut self.replicas[n];
                let Some(status) = replica.reap() else {
                    return;
                };
                let node = replica.node();
                if is_leaving {
                    tracing::debug!("the server of node {node} ended: {status}");
                } else if replica.was_ready() {
                    let pause = replica.pause(Instant::now());
                    tracing::error!(
                        "the server of node {node} ended ({status}), another one is started in {:.0} s; the others go on",
                        pause.as_secs_f64()
                    );
                } else {
                    tracing::error!(
                        "the server of node {node} ended before it served ({status}); so do all"
                    );
                    self.failed = Some(code_of(status));
                    self.terminate();
                }
                let pids: Vec<u32> = self.replicas.iter().filter_map(Replica::pid).collect();
                reap_orphans(&pids);
            }
        }
    }

    /// 0 after a polite end, as a server's own otherwise.
    fn exit_code(&self) -> anyhow::Result<ExitCode> {
        if let Some(code) = self.failed {
            return Ok(ExitCode::from(code));
        }
        Ok(match self.ends[..] {
            [_] => ExitCode::SUCCESS,
            _ => ExitCode::from(128 + self.ends.last().copied().unwrap_or(15)),
        })
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.filter(|code| *code != 0).unwrap_or(1)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
