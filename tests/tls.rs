//! HTTPS on the real binary: served, refused, asked by our own commands, and a certificate that changes.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, Server, program, run, wait_for};
use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files {
            dir: tempfile::tempdir().unwrap(),
        };
        files.renew();
        files
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// Another certificate for `localhost`.
    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        fs::write(self.certificate(), made.cert.pem()).unwrap();
    }

    fn text(&self, path: &Path) -> String {
        path.display().to_string()
    }

    fn serve(&self) -> Server {
        Server::start(&[
            "--ssl-cert-file",
            &self.text(&self.certificate()),
            "--ssl-key-file",
            &self.text(&self.key()),
        ])
    }
}

/// A request for the health, by a client that trusts this certificate only.
fn ask(port: u16, certificate: &Path) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(certificate).map_err(std::io::Error::other)?;
    roots.add(trusted).map_err(std::io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(LONG))?;
    let mut stream = StreamOwned::new(client, tcp);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ready(server: &Server, files: &Files) {
    wait_for("health over TLS", || {
        let answer = ask(server.port, &files.certificate()).unwrap();
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
}

fn health(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    program(dir)
        .arg("health")
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn https_is_served_and_asked_for() {
    let files = Files::new();
    let server = files.serve();
    ready(&server, &files);
    let port = server.port.to_string();
    let certificate = files.text(&files.certificate());
    let here = files.dir.path();

    server.wait_for_log(|line| {
        line.contains(&format!("listening on https://127.0.0.1:{port}"))
            .then_some(())
    });
    let url = format!("https://127.0.0.1:{port}");
    assert!(health(here, &["--url", &url], &[]).status.success());
    let by_environment = [("LLAMA_ARG_SSL_CERT_FILE", &*certificate), ("PORT", &*port)];
    assert!(health(here, &[], &by_environment).status.success());
    let plain = health(here, &["--url", &format!("http://127.0.0.1:{port}")], &[]);
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(
        !plain.status.success() && said.contains("https://"),
        "{said}"
    );

    let url = format!("https://localhost:{port}");
    let chat = |env: &[(&str, &str)]| {
        let input = here.join("said");
        fs::write(&input, "Hello\n").unwrap();
        program(here)
            .args(["chat", "--url", &url, "--max-tokens", "4"])
            .envs(env.iter().copied())
            .stdin(fs::File::open(input).unwrap())
            .output()
            .unwrap()
    };
    let trusting = chat(&[("SSL_CERT_FILE", &certificate)]);
    assert!(trusting.status.success(), "{trusting:?}");
    assert!(!trusting.stdout.trim_ascii().is_empty());
    let strange = chat(&[]);
    assert!(
        !strange.status.success(),
        "an unknown certificate: {strange:?}"
    );
}

#[test]
fn a_changed_certificate_is_taken_and_a_broken_one_is_not() {
    let files = Files::new();
    let server = files.serve();
    ready(&server, &files);
    let old = files.dir.path().join("old.pem");
    fs::copy(files.certificate(), &old).unwrap();

    fs::write(files.certificate(), "nothing of use").unwrap();
    server.wait_for_log(|line| {
        line.contains("the old certificate stays in use")
            .then_some(())
    });
    assert!(ask(server.port, &old).is_ok());

    files.renew();
    wait_for("the new certificate", || {
        ask(server.port, &files.certificate()).ok()
    });
    assert!(ask(server.port, &old).is_err());

    fs::copy(files.certificate(), &old).unwrap();
    files.renew();
    server.signal(Signal::SIGHUP);
    wait_for("the newest certificate", || {
        ask(server.port, &files.certificate()).ok()
    });
}

#[test]
fn who_says_nothing_is_let_go_and_keeps_nobody_waiting() {
    let files = Files::new();
    let server = files.serve();
    ready(&server, &files);
    let mut silent = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    silent
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    assert!(ask(server.port, &files.certificate()).is_ok());
    assert_eq!(
        silent.read(&mut [0; 16]).unwrap(),
        0,
        "closed by the server"
    );
}

#[test]
fn files_of_no_use_end_the_program_with_a_hint() {
    let (one, other) = (Files::new(), Files::new());
    let certificate = one.text(&one.certificate());
    let (key, wrong) = (one.text(&one.key()), other.text(&other.key()));
    for (certificate, key, code, said) in [
        (
            &*certificate,
            &*wrong,
            1,
            "does not belong to the first certificate",
        ),
        (&key, &key, 1, "holds a key, expected certificates in PEM"),
        ("/no/such/file", &key, 1, "cannot read the certificate"),
        (&certificate, "", 2, "expected `ssl-key-file` beside it"),
    ] {
        let (status, log) = run(&[
            "--port",
            "0",
            "--ssl-cert-file",
            certificate,
            "--ssl-key-file",
            key,
        ]);
        assert!(status == code && log.contains(said), "{status}: {log}");
    }
}
