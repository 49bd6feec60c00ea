//! systemd's side of things: sockets it opened for us, and what it is told of our life (sd_listen_fds(3), sd_notify(3)).
//!
//! Without systemd every function here does nothing. The variables are ours alone: children are started without them.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use bitnet_server::Listener;
use listenfd::ListenFd;
use nix::time::{ClockId, clock_gettime};

use crate::settings::Environment;
use crate::supervise::state::Failure;

/// Variables by which systemd speaks to this process and to none it starts.
pub(crate) const VARIABLES: &[&str] = &[
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];
/// More sockets than anybody opens for one service.
const MOST_SOCKETS: usize = 32;

/// A socket that was opened for us, and its name.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// Bound and listening; not passed on to children.
    pub(crate) listener: Listener,
    /// `FileDescriptorName=` of the unit, or what systemd makes of the unit's name.
    pub(crate) name: String,
}

/// The sockets meant for this process, descriptors 3 and up; none without socket activation. To be called before threads
/// are started, once: the variables are gone afterwards.
///
/// # Errors
/// When a descriptor is no listening socket for streams.
pub(crate) fn inherited(env: &Environment) -> Result<Vec<Inherited>, Failure> {
    let Some(count) = count(env, std::process::id()) else {
        return Ok(Vec::new());
    };
    let count = count.map_err(|found| {
        Failure::new(format!(
            "environment LISTEN_FDS is `{found}`, expected a number of sockets up to {MOST_SOCKETS}"
        ))
    })?;
    let names = names(env, count);
    let mut given = ListenFd::from_env();
    (0..count)
        .zip(names)
        .map(|(n, name)| {
            let listener = take(&mut given, n).map_err(|error| Failure {
                reason: format!("cannot use the socket `{name}` that systemd passed: {error}"),
                hint: Some(
                    "the socket unit needs `ListenStream=` with a TCP port or a path".into(),
                ),
            })?;
            Ok(Inherited { listener, name })
        })
        .collect()
}

/// How many there are for the process of this number, or what stands there in place of a number.
fn count(env: &Environment, pid: u32) -> Option<Result<usize, String>> {
    let for_us = env.get("LISTEN_PID")?.parse() == Ok(pid);
    let text = env.get("LISTEN_FDS").filter(|_| for_us)?;
    match text.parse() {
        Ok(0) => None,
        Ok(n) if n <= MOST_SOCKETS && !env.contains_key("LISTEN_FDS_FIRST_FD") => Some(Ok(n)),
        _ => Some(Err(text.clone())),
    }
}

fn names(env: &Environment, count: usize) -> impl Iterator<Item = String> + use<> {
    let names = env.get("LISTEN_FDNAMES").cloned().unwrap_or_default();
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    (0..count).map(move |n| match names.get(n) {
        Some(name) if !name.is_empty() => name.clone(),
        _ => format!("descriptor {}", n + 3),
    })
}

fn take(given: &mut ListenFd, n: usize) -> io::Result<Listener> {
    let lacking = || io::Error::other("it is not there");
    match given.take_tcp_listener(n) {
        Ok(listener) => Ok(listener.ok_or_else(lacking)?.into()),
        Err(_) => Ok(given.take_unix_listener(n)?.ok_or_else(lacking)?.into()),
    }
}

/// Where messages go.
struct Notify {
    socket: UnixDatagram,
    to: SocketAddr,
}

impl Notify {
    /// `address` is a path, or a name in the abstract space behind `@`.
    fn new(address: &OsStr) -> io::Result<Notify> {
        let to = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(Path::new(address))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that doesn't read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Notify { socket, to })
    }

    fn say(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.to) {
            tracing::debug!("systemd was not told `{}`: {error}", message.trim_end());
        }
    }
}

fn say(message: &str) {
    static NOTIFY: OnceLock<Option<Notify>> = OnceLock::new();
    let notify = NOTIFY.get_or_init(|| {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        Notify::new(&address)
            .inspect_err(|error| tracing::warn!("systemd can't be told anything: {error}"))
            .ok()
    });
    if let Some(notify) = notify {
        notify.say(message);
    }
}

/// The model serves; also the end of a reload.
pub(crate) fn ready(status: &str) {
    say(&format!("READY=1\nSTATUS={}\n", one_line(status)));
}

/// What `systemctl status` shows.
pub(crate) fn status(status: &str) {
    say(&format!("STATUS={}\n", one_line(status)));
}

/// A reload begins; [`ready`] ends it, whatever came of it.
pub(crate) fn reloading() {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    say(&format!(
        "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reloading\n",
        now.as_micros()
    ));
}

/// The end begins.
pub(crate) fn stopping() {
    say("STOPPING=1\nSTATUS=draining\n");
}

/// All is well.
pub(crate) fn alive() {
    say("WATCHDOG=1\n");
}

/// How often [`alive`] is to be said, if it is: twice in the time after which systemd loses patience.
pub(crate) fn watchdog_interval(env: &Environment) -> Option<Duration> {
    interval(env, std::process::id())
}

fn interval(env: &Environment, pid: u32) -> Option<Duration> {
    let other = env
        .get("WATCHDOG_PID")
        .is_some_and(|text| text.parse() != Ok(pid));
    let us: u64 = env.get("WATCHDOG_USEC")?.parse().ok()?;
    (!other && us > 0).then(|| Duration::from_micros(us.div_ceil(2)))
}

/// A line break would begin another message.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn only_sockets_for_this_process_count() {
        for (pairs, expected) in [
            (&[][..], None),
            (&[("LISTEN_FDS", "1")], None),
            (&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")], Some(Ok(2))),
            (&[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")], None),
            (&[("LISTEN_PID", ""), ("LISTEN_FDS", "2")], None),
            (&[("LISTEN_PID", "7"), ("LISTEN_FDS", "0")], None),
            (
                &[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")],
                Some(Err("-1".to_owned())),
            ),
            (
                &[("LISTEN_PID", "7"), ("LISTEN_FDS", "100000")],
                Some(Err("100000".to_owned())),
            ),
            (
                &[
                    ("LISTEN_PID", "7"),
                    ("LISTEN_FDS", "1"),
                    ("LISTEN_FDS_FIRST_FD", "0"),
                ],
                Some(Err("1".to_owned())),
            ),
        ] {
            assert_eq!(count(&env(pairs), 7), expected, "{pairs:?}");
        }
        let named = names(&env(&[("LISTEN_FDNAMES", "web::x")]), 4);
        assert_eq!(
            named.collect::<Vec<_>>(),
            ["web", "descriptor 4", "x", "descriptor 6"]
        );
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_is_hungry() {
        for (pairs, expected) in [
            (&[][..], None),
            (&[("WATCHDOG_USEC", "3000000")], Some(1_500_000)),
            (
                &[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")],
                Some(1_500_000),
            ),
            (&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "8")], None),
            (&[("WATCHDOG_USEC", "0")], None),
            (&[("WATCHDOG_USEC", "soon")], None),
        ] {
            let expected = expected.map(Duration::from_micros);
            assert_eq!(interval(&env(pairs), 7), expected, "{pairs:?}");
        }
    }

    #[test]
    fn messages_reach_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("bitnet-launch-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (listener, name) in [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.display().to_string(),
            ),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                format!("@{abstract_name}"),
            ),
        ] {
            Notify::new(OsStr::new(&name)).unwrap().say("READY=1\n");
            let mut bytes = [0; 64];
            let n = listener.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..n], b"READY=1\n");
        }
        assert_eq!(one_line("a\nREADY=1"), "a READY=1");
    }
}
