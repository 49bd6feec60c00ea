//! `bitnet-launch health`: asks a running server whether it is well. Made for HEALTHCHECK in a container without curl.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use ureq::http::Uri;
use ureq::tls::TlsConfig;

use crate::cli::{HealthArgs, ServerArgs};
use crate::models::http::root_certificates;
use crate::settings::Environment;

/// Longest answer read; `/health` sends far less.
const ANSWER_LIMIT_BYTES: u64 = 64 << 10;

/// Exit code 0 if the server answers with status 200, else 1.
///
/// # Errors
/// When the address makes no sense, nobody answers in time, or the answer isn't 200.
pub(crate) fn run(args: &HealthArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    let quiet = args.server.quiet;
    let url = args.server.route("/health", env)?;
    match ask(&url, args.timeout) {
        Ok(answer) => {
            if !quiet {
                println!("{answer}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(_) if quiet => Ok(ExitCode::FAILURE),
        Err(error) => Err(error),
    }
}

fn ask(url: &str, timeout_s: f64) -> anyhow::Result<String> {
    let timeout = Duration::try_from_secs_f64(timeout_s).context("time-out")?;
    let tls = TlsConfig::builder()
        .root_certs(root_certificates())
        .disable_verification(is_this_machine(url))
        .build();
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .tls_config(tls)
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let mut response = agent
        .get(url)
        .call()
        .with_context(|| format!("no answer from {url}"))?;
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_LIMIT_BYTES)
        .read_to_string();
    let body = body.with_context(|| format!("no complete answer from {url}"))?;
    if response.status() != 200 {
        bail!("{url} answered {}: {}", response.status(), body.trim());
    }
    Ok(body.trim().to_owned())
}

impl ServerArgs {
    /// A route of the server named by flags, else by the variables the server itself reads. With a certificate in the environment
    /// it speaks HTTPS.
    ///
    /// # Errors
    /// When the port in the environment is none.
    pub(crate) fn route(&self, route: &str, env: &Environment) -> anyhow::Result<String> {
        if let Some(url) = &self.url {
            let url = url.trim_end_matches('/');
            let scheme = if url.contains("://") { "" } else { "http://" };
            let route = if url.ends_with(route) { "" } else { route };
            return Ok(format!("{scheme}{url}{route}"));
        }
        let variable = |names: &[&str]| {
            let found = names
                .iter()
                .find_map(|name| env.get(*name).filter(|value| !value.is_empty()));
            found.cloned()
        };
        let host = self
            .host
            .clone()
            .or_else(|| variable(&["LLAMA_ARG_HOST", "HOST"]));
        let port = match self.port {
            Some(port) => port,
            None => match variable(&["LLAMA_ARG_PORT", "PORT"]) {
                Some(port) => port.trim().parse().with_context(|| {
                    format!("environment PORT is `{port}`, expected a port number from 0 to 65535")
                })?,
                None => 8081,
            },
        };
        let prefix = variable(&["LLAMA_ARG_API_PREFIX"]).unwrap_or_default();
        let host = reachable(host.as_deref().unwrap_or("127.0.0.1"));
        let prefix = prefix.trim_end_matches('/');
        let scheme = match variable(&["LLAMA_ARG_SSL_CERT_FILE"]) {
            Some(_) => "https",
            None => "http",
        };
        Ok(format!("{scheme}://{host}:{port}{prefix}{route}"))
    }
}

/// A certificate names what others call this machine, not its loopback address: there it isn't checked. Nothing secret is
/// sent, and whoever listens there is on this machine.
fn is_this_machine(url: &str) -> bool {
    let host = url.parse::<Uri>().ok();
    let host = host.as_ref().and_then(Uri::host).unwrap_or_default();
    let ip: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The first of several addresses; "every address" is reached at the loopback one.
fn reachable(hosts: &str) -> String {
    let host = hosts.split(',').next().unwrap_or(hosts).trim();
    match host.trim_matches(['[', ']']) {
        "0.0.0.0" | "" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(address: &ServerArgs, env: &Environment) -> anyhow::Result<String> {
        address.route("/health", env)
    }

    fn args(host: Option<&str>, port: Option<u16>) -> ServerArgs {
        ServerArgs {
            host: host.map(str::to_owned),
            port,
            ..ServerArgs::default()
        }
    }

    #[test]
    fn certificates_are_checked_beyond_this_machine() {
        for (url, here) in [
            ("https://127.0.0.1:8081/health", true),
            ("https://[::1]/health", true),
            ("https://localhost/health", true),
            ("https://10.0.0.1/health", false),
            ("https://localhost.example.com/health", false),
            ("https://127.0.0.1@example.com/health", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_this_machine(url), here, "{url}");
        }
    }

    #[test]
    fn finds_the_server_where_it_listens() {
        let env = |pairs: &[(&str, &str)]| -> Environment {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        for (args, env, wanted) in [
            (args(None, None), env(&[]), "http://127.0.0.1:8081/health"),
            (
                args(None, None),
                env(&[("HOST", "0.0.0.0"), ("PORT", "9000")]),
                "http://127.0.0.1:9000/health",
            ),
            (
                args(None, None),
                env(&[("HOST", "::"), ("PORT", "")]),
                "http://[::1]:8081/health",
            ),
            (
                args(Some("10.0.0.7"), Some(80)),
                env(&[("HOST", "::")]),
                "http://10.0.0.7:80/health",
            ),
            (
                args(None, None),
                env(&[("LLAMA_ARG_API_PREFIX", "/llm/")]),
                "http://127.0.0.1:8081/llm/health",
            ),
            (
                args(None, None),
                env(&[("LLAMA_ARG_SSL_CERT_FILE", "cert.pem")]),
                "https://127.0.0.1:8081/health",
            ),
        ] {
            assert_eq!(url(&args, &env).unwrap(), wanted);
        }
        for (named, wanted) in [
            ("10.0.0.7:80", "http://10.0.0.7:80/health"),
            ("http://bitnet:8081/", "http://bitnet:8081/health"),
            ("https://bitnet/llm/health", "https://bitnet/llm/health"),
        ] {
            let args = ServerArgs {
                url: Some(named.to_owned()),
                ..ServerArgs::default()
            };
            assert_eq!(url(&args, &env(&[])).unwrap(), wanted);
        }
        assert!(url(&args(None, None), &env(&[("PORT", "http")])).is_err());
    }
}
