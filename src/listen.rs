//! The public sockets: addresses, host names and `.sock` paths, bound before anything else happens, or those that systemd
//! has bound for us.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_server::{Listener, Tls};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::settings::Settings;
use crate::supervise::state::Failure;
use crate::systemd::Inherited;

/// Connections that the system holds until we take them.
const BACKLOG: i32 = 1024;

/// Bound sockets, in the order of the hosts; never empty.
#[derive(Debug)]
pub(crate) struct Sockets {
    sockets: Vec<Socket>,
    tls: Option<Arc<Tls>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Sockets {
    /// Binds every address of every host; port 0 takes any free port, the same for all.
    ///
    /// # Errors
    /// When a host has no address that can be bound, or a port is in use.
    pub(crate) fn bind(settings: &Settings, tls: Option<Arc<Tls>>) -> Result<Sockets, Failure> {
        let sockets = bind_all(
            &settings.hosts.value,
            settings.port.value,
            settings.reuse_port.value,
            announce,
        )?;
        Ok(Sockets { sockets, tls })
    }

    /// Takes the sockets that systemd passed, in place of hosts and port.
    ///
    /// # Errors
    /// When one has no address.
    pub(crate) fn take(
        inherited: Vec<Inherited>,
        tls: Option<Arc<Tls>>,
    ) -> Result<Sockets, Failure> {
        let sockets: Result<Vec<Socket>, Failure> = inherited
            .into_iter()
            .map(|Inherited { listener, name }| {
                let socket = with_address(listener).map_err(|error| {
                    Failure::new(format!(
                        "socket `{name}` from systemd has no address: {error}"
                    ))
                })?;
                match &socket {
                    Socket::Tcp(_, address) => announce(&address.ip().to_string(), address.port()),
                    Socket::Unix(_, path) => announce_path(path),
                }
                Ok(socket)
            })
            .collect();
        Ok(Sockets {
            sockets: sockets?,
            tls,
        })
    }

    /// As people write them, `127.0.0.1:8081`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let address = |socket: &Socket| match socket {
            Socket::Tcp(_, address) => address.to_string(),
            Socket::Unix(_, path) => path.display().to_string(),
        };
        self.sockets.iter().map(address).collect()
    }

    /// As programs write them, `http://127.0.0.1:8081`.
    pub(crate) fn urls(&self) -> Vec<String> {
        let scheme = match self.tls {
            Some(_) => "https",
            None => "http",
        };
        let url = |socket: &Socket| match socket {
            Socket::Tcp(_, address) => format!("{scheme}://{address}"),
            Socket::Unix(_, path) => format!("unix://{}", path.display()),
        };
        self.sockets.iter().map(url).collect()
    }

    /// Whether other machines can reach one of them.
    pub(crate) fn are_open_to_the_network(&self) -> bool {
        self.sockets.iter().any(|socket| match socket {
            Socket::Tcp(_, address) => !address.ip().to_canonical().is_loopback(),
            Socket::Unix(..) => false,
        })
    }

    /// The sockets, to be served.
    pub(crate) fn into_listeners(self) -> impl Iterator<Item = Listener> {
        let tls = self.tls;
        self.sockets.into_iter().map(move |socket| match socket {
            Socket::Tcp(listener, _) => match &tls {
                Some(tls) => Listener::Tls(listener, Arc::clone(tls)),
                None => listener.into(),
            },
            Socket::Unix(listener, _) => listener.into(),
        })
    }
}

/// The line that test scripts and `chat` wait for.
fn announce(host: &str, port: u16) {
    tracing::info!("HTTP server is listening, hostname: {host}, port: {port}; loading the model");
}

fn announce_path(path: &Path) {
    tracing::info!(
        "HTTP server is listening, socket: {}; loading the model",
        path.display()
    );
}

fn with_address(listener: Listener) -> io::Result<Socket> {
    Ok(match listener {
        Listener::Tcp(listener) | Listener::Tls(listener, _) => {
            let address = listener.local_addr()?;
            Socket::Tcp(listener, address)
        }
        Listener::Unix(listener) => {
            let address = listener.local_addr()?;
            let path = address.as_pathname().unwrap_or(Path::new("(unnamed)"));
            Socket::Unix(listener, path.to_owned())
        }
    })
}

/// Hosts that mean every address come first: they take in the others, which the system would refuse beside them.
fn bind_all(
    hosts: &[String],
    port: u16,
    reuse_port: bool,
    announce: impl Fn(&str, u16),
) -> Result<Vec<Socket>, Failure> {
    let mut hosts: Vec<&String> = hosts.iter().collect();
    hosts.sort_by_key(|host| match host.parse() {
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => 0,
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => 1,
        _ => 2,
    });
    let mut sockets: Vec<Socket> = Vec::new();
    let mut port = port;
    for host in hosts {
        if host.ends_with(".sock") {
            sockets.push(bind_unix(Path::new(host))?);
            continue;
        }
        let mut addresses = addresses_of(host)?;
        addresses.retain(|ip| !sockets.iter().any(|socket| takes_in(socket, *ip)));
        if addresses.is_empty() {
            tracing::info!("host {host} needs no socket of its own: another one takes it in");
            continue;
        }
        let listeners = bind_tcp(host, &addresses, port, reuse_port)?;
        port = listeners[0].1.port();
        announce(host, port);
        let tcp = |(listener, address)| Socket::Tcp(listener, address);
        sockets.extend(listeners.into_iter().map(tcp));
    }
    Ok(sockets)
}

/// Whether connections to `ip` reach this socket. `::` is bound for IPv4, too.
fn takes_in(socket: &Socket, ip: IpAddr) -> bool {
    let Socket::Tcp(_, address) = socket else {
        return false;
    };
    match address.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4(),
        bound => bound == ip,
    }
}

/// Sockets for agent checks on the hosts' addresses, if there is a port for them; 0 takes any free one, the same for all.
///
/// # Errors
/// When a host has no address that can be bound, or the port is in use.
pub(crate) fn bind_agent(settings: &Settings) -> Result<Vec<TcpListener>, Failure> {
    let Some(port) = settings.agent_check_port.value else {
        return Ok(Vec::new());
    };
    let is_name = |host: &&String| !host.ends_with(".sock");
    let hosts = settings.hosts.value.iter().filter(is_name);
    let hosts: Vec<String> = hosts.cloned().collect();
    let told = |_: &str, port| tracing::info!("agent checks are answered on port {port}");
    let sockets = bind_all(&hosts, port, false, told)?;
    let listeners = sockets.into_iter().filter_map(|socket| match socket {
        Socket::Tcp(listener, _) => Some(listener),
        Socket::Unix(..) => None,
    });
    Ok(listeners.collect())
}

/// All addresses of a host, so that `localhost` is reached by IPv4 and IPv6. One that this machine lacks is left out.
fn bind_tcp(
    host: &str,
    addresses: &[IpAddr],
    mut port: u16,
    reuse_port: bool,
) -> Result<Vec<(TcpListener, SocketAddr)>, Failure> {
    let mut bound: Vec<(TcpListener, SocketAddr)> = Vec::new();
    let mut failed = None;
    for ip in addresses {
        let listener = open(SocketAddr::new(*ip, port), reuse_port);
        match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => {
                port = address.port();
                bound.push((listener, address));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(bind_failure(host, port, &error));
            }
            Err(error) => failed = Some(bind_failure(host, port, &error)),
        }
    }
    match failed {
        Some(failure) if bound.is_empty() => Err(failure),
        _ => Ok(bound),
    }
}

fn open(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // A server that is started again must not wait for the connections of the last one to be forgotten.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if reuse_port {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    }
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&fd),
        &SockaddrStorage::from(address),
    )?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// Never empty, without repetitions.
fn addresses_of(host: &str) -> Result<Vec<IpAddr>, Failure> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let failed = |why: String| Failure {
        reason: format!("cannot listen on `{host}`: {why}"),
        hint: Some(
            "say `--host 127.0.0.1` for this machine alone, `--host 0.0.0.0` for the network"
                .into(),
        ),
    };
    let resolved = (name, 0).to_socket_addrs();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in resolved.map_err(|error| failed(error.to_string()))? {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    if addresses.is_empty() {
        return Err(failed("the name has no address".to_owned()));
    }
    Ok(addresses)
}

fn bind_failure(host: &str, port: u16, error: &io::Error) -> Failure {
    let at = format!("{host}:{port}");
    let (why, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("port {port} is in use"),
            format!("another server runs there; end it, or choose another port with `--port {}` or PORT", next_port(port)),
        ),
        io::ErrorKind::PermissionDenied => (
            error.to_string(),
            "ports below 1024 belong to the administrator; choose another with `--port 8081` or PORT".to_owned(),
        ),
        io::ErrorKind::AddrNotAvailable => (
            error.to_string(),
            "no network interface has this address; say `--host 127.0.0.1` or `--host 0.0.0.0`".to_owned(),
        ),
        _ => return Failure::new(format!("cannot listen on `{at}`: {error}")),
    };
    Failure {
        reason: format!("cannot listen on `{at}`: {why}"),
        hint: Some(hint),
    }
}

fn next_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(8081)
}

/// A socket file left by a server that is gone is replaced.
fn bind_unix(path: &Path) -> Result<Socket, Failure> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        let _ = fs::remove_file(path);
    }
    match UnixListener::bind(path) {
        Ok(listener) => {
            announce_path(path);
            Ok(Socket::Unix(listener, path.to_owned()))
        }
        Err(error) => Err(Failure {
            reason: format!("cannot listen on `{}`: {error}", path.display()),
            hint: Some("another server runs there, or the directory can't be written".into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(hosts: &[&str], port: u16) -> Result<Sockets, Failure> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let sockets = bind_all(&hosts, port, false, announce)?;
        Ok(Sockets { sockets, tls: None })
    }

    fn port_of(sockets: &Sockets) -> u16 {
        let address = &sockets.addresses()[0];
        address.rsplit(':').next().unwrap().parse().unwrap()
    }

    #[test]
    fn names_addresses_and_any_port() {
        let sockets = bound(&["localhost"], 0).unwrap();
        assert!(!sockets.urls().is_empty());
        assert!(!sockets.addresses()[0].ends_with(":0"));
        assert!(!sockets.are_open_to_the_network());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let port = port_of(&bound(&["127.0.0.1"], 0).unwrap());
        let first = bound(&["127.0.0.1"], port).unwrap();
        let failure = bound(&["127.0.0.1"], port).err().unwrap();
        assert!(
            failure.reason.contains(&format!("port {port} is in use")),
            "{failure:?}"
        );
        assert!(failure.hint.unwrap().contains("--port"));
        drop(first);
    }

    #[test]
    fn a_shared_port_is_bound_twice() {
        let hosts = ["127.0.0.1".to_owned()];
        let first = bind_all(&hosts, 0, true, announce).unwrap();
        let Socket::Tcp(_, address) = &first[0] else {
            panic!("no TCP socket");
        };
        assert!(bind_all(&hosts, address.port(), true, announce).is_ok());
        assert!(bind_all(&hosts, address.port(), false, announce).is_err());
    }

    #[test]
    fn a_host_that_another_takes_in_is_left_out() {
        for hosts in [
            &["0.0.0.0", "127.0.0.1"][..],
            &["127.0.0.1", "0.0.0.0"],
            &["0.0.0.0", "0.0.0.0"],
        ] {
            let sockets = bound(hosts, 0).unwrap();
            assert_eq!(sockets.addresses().len(), 1, "{hosts:?}");
            assert!(sockets.addresses()[0].starts_with("0.0.0.0:"));
            assert!(sockets.are_open_to_the_network());
        }
        let twice = bound(&["127.0.0.1", "127.0.0.2", "127.0.0.1"], 0).unwrap();
        assert_eq!(twice.addresses().len(), 2);
        // Some machines have no IPv6.
        if let Ok(sockets) = bound(&["127.0.0.1", "0.0.0.0", "::"], 0) {
            assert_eq!(sockets.addresses().len(), 1);
            assert!(std::net::TcpStream::connect(("127.0.0.1", port_of(&sockets))).is_ok());
        }
    }

    #[test]
    fn unknown_hosts_are_refused() {
        let failure = bound(&["no.such.host.invalid"], 0).err().unwrap();
        assert!(failure.reason.contains("no.such.host.invalid"));
    }

    #[test]
    fn a_stale_socket_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let path = path.display().to_string();
        let sockets = bound(&[&path], 0).unwrap();
        assert!(bound(&[&path], 0).is_err(), "somebody listens there");
        drop(sockets);
    }
}
