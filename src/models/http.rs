//! One HTTP request at a time, with the hub's token where it belongs, proxies and certificates from the environment.
//!
//! Redirects are never followed here: who follows decides with what. The token goes to the endpoint's own origin only.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ureq::http::header::{HeaderMap, LOCATION, RETRY_AFTER};
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::error::PullError;
use super::retry::{Failure, retry_after};
use crate::settings::Environment;

/// A connection that takes longer to come up isn't coming.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most of an error's text that is read.
const ERROR_TEXT_BYTES: u64 = 4 << 10;
/// Connections kept open per host.
const IDLE_CONNECTIONS: usize = 16;

/// What requests are made with.
#[derive(Clone)]
pub(crate) struct Client {
    /// For `http://` and `https://`; they may have different proxies.
    plain: Agent,
    secure: Agent,
    endpoint: Uri,
    token: Option<String>,
}

impl Client {
    /// `endpoint`: where the token belongs. `stall`: a connection without a byte for so long is broken.
    ///
    /// # Errors
    /// When the endpoint or a proxy is no address.
    pub(crate) fn new(
        endpoint: &str,
        token: Option<String>,
        stall: Duration,
        env: &Environment,
    ) -> Result<Client, PullError> {
        let bad_endpoint = || PullError::Variable {
            name: "HF_ENDPOINT",
            found: endpoint.to_owned(),
            expected: "an address such as https://huggingface.co",
        };
        let uri: Uri = endpoint.parse().map_err(|_| bad_endpoint())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad_endpoint());
        }
        let tls = TlsConfig::builder().root_certs(root_certificates()).build();
        let agent = |proxy| {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .max_idle_connections(IDLE_CONNECTIONS)
                .max_idle_connections_per_host(IDLE_CONNECTIONS)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(stall))
                .timeout_per_read(Some(stall))
                .tls_config(tls.clone())
                .proxy(proxy)
                .user_agent(concat!("bitnet-launch/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        };
        Ok(Client {
            plain: agent(proxy(env, &["http_proxy", "HTTP_PROXY"])?),
            secure: agent(proxy(env, &["HTTPS_PROXY", "https_proxy"])?),
            endpoint: uri,
            token,
        })
    }

    /// Whether an address is the hub's own, by scheme, host and port.
    pub(crate) fn is_hub(&self, uri: &Uri) -> bool {
        origin(uri) == origin(&self.endpoint)
    }

    /// `HEAD`; 2xx and 3xx are answers.
    pub(crate) fn head(&self, url: &str) -> Result<Response<Body>, Failure> {
        self.send("HEAD", url, None)
    }

    /// `GET`, whole or from `range.0` to `range.1` (both counted in); 2xx and 3xx are answers.
    pub(crate) fn get(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> Result<Response<Body>, Failure> {
        self.send("GET", url, range)
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> Result<Response<Body>, Failure> {
        let uri: Uri = url.parse().map_err(|_| {
            Failure::Final(PullError::Protocol {
                url: self.endpoint.to_string(),
                found: format!("the address `{url}`"),
                expected: "one that can be asked".to_owned(),
            })
        })?;
        let agent = match uri.scheme_str() {
            Some("https") => &self.secure,
            _ => &self.plain,
        };
        let request = match method {
            "HEAD" => agent.head(url),
            _ => agent.get(url),
        };
        let mut request = request.header("Accept-Encoding", "identity");
        let token = self.token.as_ref().filter(|_| self.is_hub(&uri));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some((first, last)) = range {
            request = request.header("Range", format!("bytes={first}-{last}"));
        }
        let response = request.call().map_err(|error| failed(url, &error))?;
        let status = response.status().as_u16();
        match status {
            200..400 => Ok(response),
            _ => Err(refused(url, response, token.is_some())),
        }
    }
}

/// What a request without an answer means.
pub(crate) fn failed(url: &str, error: &ureq::Error) -> Failure {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            Failure::Final(PullError::Protocol {
                url: url.to_owned(),
                found: error.to_string(),
                expected: "an address that can be asked".to_owned(),
            })
        }
        error => Failure::transient(words(error)),
    }
}

/// An error of the connection, in words of ours where the library's say little.
pub(crate) fn words(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.trim_start_matches("io: ");
    format!("no answer ({text})")
}

/// What an error status means.
fn refused(url: &str, response: Response<Body>, token: bool) -> Failure {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    if matches!(status, 408 | 425 | 429 | 500..600) {
        let wait = text(&headers, RETRY_AFTER.as_str());
        return Failure::Transient {
            cause: format!("the answer was {}", response.status()),
            status: Some(status),
            retry_after: wait.and_then(|wait| retry_after(&wait, SystemTime::now())),
        };
    }
    let said = text(&headers, "x-error-message").or_else(|| error_text(response));
    Failure::Final(PullError::Refused {
        url: without_query(url),
        status,
        message: said.map_or_else(String::new, |said| format!(": {said}")),
        code: text(&headers, "x-error-code"),
        token,
    })
}

/// `{"error": "…"}`, or the first line of a short text.
fn error_text(mut response: Response<Body>) -> Option<String> {
    let body = response.body_mut().with_config().limit(ERROR_TEXT_BYTES);
    let text = body.read_to_string().ok()?;
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let said = json.as_ref().and_then(|json| json["error"].as_str());
    let line = said.or_else(|| text.lines().next().filter(|line| !line.contains('<')))?;
    let line = line.trim();
    (!line.is_empty()).then(|| line.chars().take(200).collect())
}

/// A header's text.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// Where a redirect leads, as an absolute address.
pub(crate) fn location(base: &str, headers: &HeaderMap) -> Option<String> {
    let to = text(headers, LOCATION.as_str())?;
    if to.contains("://") {
        return Some(to);
    }
    let base: Uri = base.parse().ok()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = to.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if to.starts_with('/') {
        return Some(format!("{scheme}://{authority}{to}"));
    }
    let directory = base
        .path()
        .rsplit_once('/')
        .map_or("", |(before, _)| before);
    Some(format!("{scheme}://{authority}{directory}/{to}"))
}

/// An address without what may be a signature.
pub(crate) fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(match scheme.as_str() {
        "https" => 443,
        _ => 80,
    });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The machine's certificates, `SSL_CERT_FILE` and `SSL_CERT_DIR` included; those built in where it has none.
pub(crate) fn root_certificates() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    let certificates: Vec<_> = found
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    RootCerts::Specific(Arc::new(certificates))
}

/// The proxy named by the first of these variables or by `ALL_PROXY`, with what `NO_PROXY` takes out.
fn proxy(env: &Environment, names: &[&'static str]) -> Result<Option<Proxy>, PullError> {
    let all = names.iter().chain(&["ALL_PROXY", "all_proxy"]);
    let named = |name: &&'static str| {
        let value = env.get(*name).filter(|value| !value.trim().is_empty())?;
        Some((*name, value.trim()))
    };
    let Some((name, value)) = all.copied().find_map(|name| named(&name)) else {
        return Ok(None);
    };
    let bad = || PullError::Variable {
        name,
        found: value.to_owned(),
        expected: "a proxy such as http://proxy:3128",
    };
    let proxy = Proxy::new(value).map_err(|_| bad())?;
    let mut builder = Proxy::builder(proxy.protocol())
        .host(proxy.host())
        .port(proxy.port())
        .resolve_target(proxy.resolve_target());
    if let Some(user) = proxy.username() {
        builder = builder.username(user);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    let exempt = env.get("NO_PROXY").or_else(|| env.get("no_proxy"));
    for host in exempt.into_iter().flat_map(|hosts| hosts.split(',')) {
        let host = host.trim();
        if host.is_empty() {
            continue;
        }
        builder = builder.no_proxy(host);
        // People write `example.com` for the domain and all hosts in it.
        if !host.starts_with(['.', '*']) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().map(Some).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        let stall = Duration::from_secs(1);
        Client::new(endpoint, Some("secret".into()), stall, &Environment::new()).unwrap()
    }

    #[test]
    fn knows_the_hub_by_its_origin() {
        let hub = client("https://huggingface.co");
        for (url, wanted) in [
            ("https://huggingface.co/a/b", true),
            ("https://HuggingFace.co:443/a", true),
            ("http://huggingface.co/a", false),
            ("https://huggingface.co:8443/a", false),
            ("https://huggingface.co.evil.example/a", false),
            ("https://cdn-lfs.huggingface.co/a", false),
        ] {
            assert_eq!(hub.is_hub(&url.parse().unwrap()), wanted, "{url}");
        }
    }

    #[test]
    fn resolves_locations() {
        for (to, wanted) in [
            ("https://cdn/x?y", "https://cdn/x?y"),
            ("/a/b", "http://hub:80/a/b"),
            ("//cdn/x", "http://cdn/x"),
            ("c", "http://hub:80/a/c"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, to.parse().unwrap());
            let found = location("http://hub:80/a/b", &headers);
            assert_eq!(found.as_deref(), Some(wanted));
        }
    }

    #[test]
    fn reads_proxies() {
        let env = |pairs: &[(&str, &str)]| -> Environment {
            let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            pairs.iter().map(own).collect()
        };
        let names = &["HTTPS_PROXY", "https_proxy"];
        assert!(proxy(&env(&[]), names).unwrap().is_none());
        assert!(
            proxy(&env(&[("HTTPS_PROXY", "")]), names)
                .unwrap()
                .is_none()
        );
        let found = proxy(
            &env(&[
                ("https_proxy", "http://me:pw@proxy:3128"),
                ("NO_PROXY", "localhost, example.com,.inner"),
            ]),
            names,
        );
        let found = found.unwrap().unwrap();
        assert_eq!((found.host(), found.port()), ("proxy", 3128));
        assert_eq!(found.username(), Some("me"));
        for (url, direct) in [
            ("https://localhost/x", true),
            ("https://example.com/x", true),
            ("https://hub.example.com/x", true),
            ("https://a.inner/x", true),
            ("https://huggingface.co/x", false),
        ] {
            assert_eq!(found.is_no_proxy(&url.parse().unwrap()), direct, "{url}");
        }
        assert!(proxy(&env(&[("ALL_PROXY", "gopher://x")]), names).is_err());
    }
}
