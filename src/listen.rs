//! The public sockets: addresses, host names and `.sock` paths, bound before anything else happens.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use bitnet_server::Listener;

use crate::supervise::state::Failure;

/// Bound sockets, in the order of the hosts; never empty.
#[derive(Debug)]
pub(crate) struct Sockets(Vec<Socket>);

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
    pub(crate) fn bind(hosts: &[String], port: u16) -> Result<Sockets, Failure> {
        let mut sockets = Vec::new();
        let mut port = port;
        for host in hosts {
            if host.ends_with(".sock") {
                sockets.push(bind_unix(Path::new(host))?);
                continue;
            }
            let listeners = bind_tcp(host, port)?;
            port = listeners[0].1.port();
            tracing::info!(
                "HTTP server is listening, hostname: {host}, port: {port}; loading the model"
            );
            let tcp = |(listener, address)| Socket::Tcp(listener, address);
            sockets.extend(listeners.into_iter().map(tcp));
        }
        Ok(Sockets(sockets))
    }

    /// As people write them, `127.0.0.1:8081`.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let address = |socket: &Socket| match socket {
            Socket::Tcp(_, address) => address.to_string(),
            Socket::Unix(_, path) => path.display().to_string(),
        };
        self.0.iter().map(address).collect()
    }

    /// As programs write them, `http://127.0.0.1:8081`.
    pub(crate) fn urls(&self) -> Vec<String> {
        let url = |socket: &Socket| match socket {
            Socket::Tcp(_, address) => format!("http://{address}"),
            Socket::Unix(_, path) => format!("unix://{}", path.display()),
        };
        self.0.iter().map(url).collect()
    }

    /// The sockets, to be served.
    pub(crate) fn into_listeners(self) -> impl Iterator<Item = Listener> {
        self.0.into_iter().map(|socket| match socket {
            Socket::Tcp(listener, _) => listener.into(),
            Socket::Unix(listener, _) => listener.into(),
        })
    }
}

/// All addresses of a host, so that `localhost` is reached by IPv4 and IPv6. One that this machine lacks is left out.
fn bind_tcp(host: &str, mut port: u16) -> Result<Vec<(TcpListener, SocketAddr)>, Failure> {
    let mut bound: Vec<(TcpListener, SocketAddr)> = Vec::new();
    let mut failed = None;
    for ip in addresses_of(host)? {
        let listener = TcpListener::bind((ip, port));
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
            tracing::info!(
                "HTTP server is listening, socket: {}; loading the model",
                path.display()
            );
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

    fn local(port: u16) -> Result<Sockets, Failure> {
        Sockets::bind(&["127.0.0.1".into()], port)
    }

    #[test]
    fn names_addresses_and_any_port() {
        let hosts = ["localhost".to_owned()];
        let sockets = Sockets::bind(&hosts, 0).unwrap();
        assert!(!sockets.urls().is_empty());
        assert!(!sockets.addresses()[0].ends_with(":0"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = local(0).unwrap();
        let port: u16 = first.addresses()[0]
            .rsplit(':')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let failure = local(port).err().unwrap();
        assert!(
            failure.reason.contains(&format!("port {port} is in use")),
            "{failure:?}"
        );
        assert!(failure.hint.unwrap().contains("--port"));
    }

    #[test]
    fn unknown_hosts_are_refused() {
        let failure = Sockets::bind(&["no.such.host.invalid".into()], 0)
            .err()
            .unwrap();
        assert!(failure.reason.contains("no.such.host.invalid"));
    }

    #[test]
    fn a_stale_socket_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let hosts = [path.display().to_string()];
        let sockets = Sockets::bind(&hosts, 0).unwrap();
        assert!(Sockets::bind(&hosts, 0).is_err(), "somebody listens there");
        drop(sockets);
    }
}
