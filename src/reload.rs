//! What is served, and how something else comes in its place without an outage: settings and model are read anew, a plan is
//! made, a second engine starts beside the first and has to pass its test, new requests go to it, the old one ends with
//! its last request.
//!
//! One thread, the desk, owns what is served; everybody sends it wishes: SIGHUP, `POST /reload`, a changed settings file,
//! changed limits. Whatever goes wrong before the new engine has passed leaves everything as it was. Here is what all engines
//! have in common; [`built_in`] exchanges ours, `external` those of others.

mod built_in;
pub(crate) mod room;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use bitnet_server::{Control, Reloaded, Tls};
use tokio::sync::oneshot;

pub(crate) use self::built_in::{BuiltIn, Served, broker_config, model_file};
use crate::serve::serving;
use crate::settings::{Settings, Sources};
use crate::startup;
use crate::systemd;

/// Wishes that may wait.
const WISHES: usize = 8;

/// Sends wishes to the desk.
#[derive(Clone)]
pub(crate) struct Reloader(SyncSender<Wish>);

/// One wish.
pub(crate) struct Wish {
    pub(crate) cause: Cause,
    pub(crate) answer: Option<oneshot::Sender<Result<Reloaded, String>>>,
}

/// Who wants something else to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// An operator, by HTTP.
    Asked {
        /// The old engine is to end before the new one starts.
        gap: bool,
    },
    /// An operator, by SIGHUP.
    Signal,
    /// The settings file has changed.
    File,
    /// Limits have changed; in words.
    Limits(String),
}

/// Whether the old engine may end before the new one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gap {
    /// It may not.
    Never,
    /// Where memory can't hold both.
    WhereShort,
    /// It is wished.
    Always,
}

impl Reloader {
    /// And what the desk listens to.
    pub(crate) fn new() -> (Reloader, Wishes) {
        let (sender, receiver) = mpsc::sync_channel(WISHES);
        (Reloader(sender), Wishes(receiver))
    }

    /// Leaves a wish; the outcome goes to the log.
    pub(crate) fn wish(&self, cause: Cause) {
        let answer = None;
        if self.0.try_send(Wish { cause, answer }).is_err() {
            tracing::warn!(
                "not reloaded: {WISHES} reloads wait already, or the server is on its way out"
            );
        }
    }
}

impl Control for Reloader {
    fn reload(&self, gap: bool) -> oneshot::Receiver<Result<Reloaded, String>> {
        let (answer, receiver) = oneshot::channel();
        let wish = Wish {
            cause: Cause::Asked { gap },
            answer: Some(answer),
        };
        if let Err(mpsc::TrySendError::Full(wish) | mpsc::TrySendError::Disconnected(wish)) =
            self.0.try_send(wish)
            && let Some(answer) = wish.answer
        {
            let _ = answer.send(Err(format!("{WISHES} reloads wait already")));
        }
        receiver
    }
}

/// Wishes on their way to the desk.
pub(crate) struct Wishes(pub(crate) Receiver<Wish>);

/// What a desk knows whatever the engine is.
pub(crate) struct Front {
    pub(crate) sources: Sources,
    /// As the server was started: some of them can't be followed later.
    pub(crate) first: Settings,
    /// Its certificate is read anew, too.
    pub(crate) tls: Option<Arc<Tls>>,
    /// For systemd.
    pub(crate) addresses: Vec<String>,
}

/// What came of a reload that worked.
pub(crate) struct Done {
    /// In words.
    pub(crate) outcome: String,
    pub(crate) engine_replaced: bool,
}

/// Who owns what is served.
pub(crate) trait Desk: Send + 'static {
    fn front(&self) -> &Front;

    /// Those that are followed now.
    fn settings(&self) -> &Settings;

    /// Puts what these settings mean in the place of what is served.
    ///
    /// # Errors
    /// Why all stays as it was.
    fn exchange(&mut self, settings: Settings, gap: Gap) -> anyhow::Result<Done>;
}

/// Starts the thread; it lives as long as the program.
///
/// # Errors
/// Those of starting a thread.
pub(crate) fn open(mut desk: impl Desk, wishes: Wishes) -> std::io::Result<()> {
    let live = move || {
        for wish in wishes.0 {
            attend(&mut desk, wish);
        }
    };
    thread::Builder::new()
        .name("reload".into())
        .spawn(live)
        .map(|_| ())
}

fn attend(desk: &mut impl Desk, wish: Wish) {
    let Some(gap) = permitted(&wish.cause, desk.settings()) else {
        return;
    };
    let front = desk.front();
    systemd::reloading();
    if let Some(tls) = front.tls.as_ref().filter(|_| wish.cause != Cause::File) {
        tls.reload_and_say();
    }
    let serving = serving(&front.addresses);
    let result = reload(desk, gap).map_err(|error| told(&error));
    systemd::ready(&serving);
    match &result {
        Ok(done) => {
            for warning in &done.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!("reload: {}", done.outcome);
        }
        Err(reason) => tracing::error!("not reloaded, all stays as it was: {reason}"),
    }
    if let Some(answer) = wish.answer {
        let _ = answer.send(result);
    }
}

/// `None`: this is no reason to reload.
fn permitted(cause: &Cause, settings: &Settings) -> Option<Gap> {
    let where_short = match settings.reload_gap.value {
        true => Gap::WhereShort,
        false => Gap::Never,
    };
    match cause {
        Cause::Asked { gap: true } => Some(Gap::Always),
        Cause::Asked { gap: false } | Cause::Signal => Some(where_short),
        Cause::File => {
            tracing::info!("the settings file has changed");
            Some(where_short)
        }
        Cause::Limits(change) if settings.replan.value => {
            tracing::warn!("limits changed: {change}");
            Some(Gap::WhereShort)
        }
        Cause::Limits(change) => {
            tracing::warn!(
                "limits changed: {change}; the plan stays as it is: `bitnet-launch reload` follows, or serve with `--replan`"
            );
            None
        }
    }
}

fn reload(desk: &mut impl Desk, gap: Gap) -> anyhow::Result<Reloaded> {
    let front = desk.front();
    let settings = front.sources.read()?;
    let warnings = fixed(&front.first, &settings);
    let Done {
        outcome,
        engine_replaced,
    } = desk.exchange(settings, gap)?;
    Ok(Reloaded {
        outcome,
        engine_replaced,
        warnings,
    })
}

/// In one line, with what can be done.
pub(crate) fn told(error: &anyhow::Error) -> String {
    match startup::hint(error) {
        Some(hint) => format!("{error:#} ({hint})"),
        None => format!("{error:#}"),
    }
}

/// A line for each setting that is another one now, and was needed at the start.
pub(crate) fn fixed(first: &Settings, now: &Settings) -> Vec<String> {
    let (a, b) = (first, now);
    // Another engine is replaced for these.
    let is_built_in = !first.external.is_wanted();
    let changes = [
        ("host", a.hosts.value != b.hosts.value),
        ("port", a.port.value != b.port.value),
        ("api-key", a.api_keys.value != b.api_keys.value),
        (
            "public-models",
            a.public_models.value != b.public_models.value,
        ),
        ("api-prefix", a.api_prefix.value != b.api_prefix.value),
        ("cors-origins", a.cors_origins.value != b.cors_origins.value),
        ("cors-methods", a.cors_methods.value != b.cors_methods.value),
        ("cors-headers", a.cors_headers.value != b.cors_headers.value),
        (
            "cors-credentials",
            a.cors_credentials.value != b.cors_credentials.value,
        ),
        ("ui", a.ui.value != b.ui.value),
        ("path", a.static_path.value != b.static_path.value),
        (
            "agent-check-port",
            a.agent_check_port.value != b.agent_check_port.value,
        ),
        (
            "full-speed",
            a.full_speed_tok_s.value != b.full_speed_tok_s.value,
        ),
        ("sandbox", is_built_in && a.sandbox.value != b.sandbox.value),
        ("prio", is_built_in && a.nice.value != b.nice.value),
        ("per-node", a.per_node.value != b.per_node.value),
        ("reuse-port", a.reuse_port.value != b.reuse_port.value),
        ("ssl-cert-file and ssl-key-file", a.tls != b.tls),
        ("max-body", a.max_body_bytes.value != b.max_body_bytes.value),
        ("timeout", a.timeout.value != b.timeout.value),
        ("drain-notice", a.drain_notice.value != b.drain_notice.value),
        (
            "drain-timeout",
            a.drain_timeout.value != b.drain_timeout.value,
        ),
        ("crash-loop", a.crash_loop.value != b.crash_loop.value),
        ("metrics", a.metrics.value != b.metrics.value),
        ("slots", a.slots.value != b.slots.value),
        ("props", a.props.value != b.props.value),
        (
            "slot-save-path",
            a.slot_save_path.value != b.slot_save_path.value,
        ),
        ("log-level", a.log_level.value != b.log_level.value),
        ("log-format", a.log_format.value != b.log_format.value),
        ("log-file", a.log_file.value != b.log_file.value),
    ];
    let changed = changes.into_iter().filter(|(_, is_other)| *is_other);
    changed
        .map(|(name, _)| {
            format!(
                "`{name}` has changed, but can't change while the server runs: restart it to follow"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings;

    #[test]
    fn what_needs_a_restart_is_named() {
        let first = settings(&[("port", "8081"), ("temp", "0.5")], &[]);
        assert!(fixed(&first, &settings(&[("temp", "0.9"), ("threads", "1")], &[])).is_empty());
        let found = fixed(
            &first,
            &settings(&[("port", "9000"), ("api-key", "s")], &[]),
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`port`") && found[1].contains("`api-key`"));
        assert!(found.iter().all(|line| !line.contains("9000")));
        let engine = |prio| settings(&[("engine", "/bin/true"), ("prio", prio)], &[]);
        assert!(fixed(&engine("0"), &engine("-1")).is_empty());
        assert_eq!(
            fixed(&first, &settings(&[("port", "8081"), ("prio", "-1")], &[])).len(),
            1
        );
    }
}
