//! The hub's protocol as huggingface.co and its mirrors speak it: what a repository holds, and where the bytes of a file are.
//!
//! `GET /api/models/REPO/revision/REV?blobs=true` lists files with sizes and hashes. `HEAD /REPO/resolve/REV/FILE` answers with
//! `X-Repo-Commit`, `X-Linked-Etag` and `X-Linked-Size`, and redirects to where the bytes are: another host for large files.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::Uri;

use super::digest::is_sha256;
use super::error::PullError;
use super::http::{self, Client};
use super::reference::{Reference, is_name, is_path};
use super::retry::{Failure, Retry};
use crate::interrupt::Interrupt;
use crate::settings::Environment;

/// Where models are when nobody says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// A connection without a byte for so long is broken.
const STALL: Duration = Duration::from_secs(30);
/// Longest list of files that is read.
const LISTING_BYTES: u64 = 32 << 20;
/// More redirects than this lead nowhere.
const REDIRECTS: usize = 5;
/// What a retry's cause is followed by, on its way to the user.
pub(crate) type Note<'a> = &'a dyn Fn(&str);

/// The hub, or a mirror.
#[derive(Clone)]
pub(crate) struct Hub {
    /// Makes the requests.
    pub client: Client,
    endpoint: String,
    /// Tries in a row that may fail.
    pub tries: u32,
}

/// What a repository holds at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<HubFile>,
}

/// One file, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    /// Path in the repository.
    pub path: String,
    /// Bytes.
    pub size: Option<u64>,
    /// Hash of large files.
    pub sha256: Option<String>,
    /// Git's id of the others.
    pub blob: Option<String>,
}

/// Where a file's bytes are, and what the hub promises about them.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Address of the bytes; may carry a signature that expires.
    pub url: String,
    /// Names the content.
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

impl Resolved {
    /// The hash, where the etag is one.
    pub(crate) fn sha256(&self) -> Option<&str> {
        Some(self.etag.as_str()).filter(|etag| is_sha256(etag))
    }
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Whether the environment forbids the network.
pub(crate) fn is_offline(env: &Environment) -> bool {
    [
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "LLAMA_ARG_OFFLINE",
    ]
    .iter()
    .any(|name| is_true(env, name))
}

fn is_true(env: &Environment, name: &str) -> bool {
    env.get(name).is_some_and(|value| {
        matches!(
            value.trim().to_ascii_lowercase().as_str(),
            "1" | "true" | "yes" | "on"
        )
    })
}

impl Hub {
    /// The hub that the environment names, with its token.
    ///
    /// # Errors
    /// When the environment holds an address or a number that is none.
    pub(crate) fn from_env(env: &Environment, options: &Options) -> Result<Hub, PullError> {
        let set = |name: &str| env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or(ENDPOINT).trim_end_matches('/');
        let stall = match (options.stall, set("HF_HUB_DOWNLOAD_TIMEOUT")) {
            (Some(stall), _) => stall,
            (None, None) => STALL,
            (None, Some(text)) => seconds(text).ok_or_else(|| PullError::Variable {
                name: "HF_HUB_DOWNLOAD_TIMEOUT",
                found: text.to_owned(),
                expected: "seconds, more than 0",
            })?,
        };
        let token = token(env).filter(|_| may_carry_secrets(endpoint));
        Ok(Hub {
            client: Client::new(endpoint, token, stall, env)?,
            endpoint: endpoint.to_owned(),
            tries: options.tries,
        })
    }

    /// What the repository holds.
    ///
    /// # Errors
    /// When the hub can't be reached, says no, or answers with something else.
    pub(crate) fn list(
        &self,
        reference: &Reference,
        interrupt: &Interrupt,
        note: Note<'_>,
    ) -> Result<Listing, PullError> {
        let Reference { repo, revision, .. } = reference;
        let url = format!(
            "{}/api/models/{repo}/revision/{revision}?blobs=true",
            self.endpoint
        );
        let mut retry = Retry::new(&url, self.tries, interrupt, note);
        loop {
            match self.try_list(&url) {
                Ok(listing) => return Ok(listing),
                Err(failure) => retry.wait(failure)?,
            }
        }
    }

    fn try_list(&self, url: &str) -> Result<Listing, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let mut response = self.client.get(&url, None)?;
            if response.status().is_redirection() {
                url = self.hop(&url, response.headers())?;
                continue;
            }
            let body = response.body_mut().with_config().limit(LISTING_BYTES);
            let text = body
                .read_to_string()
                .map_err(|error| Failure::transient(http::words(&error)))?;
            return Ok(listing(&url, &text)?);
        }
        Err(too_many_redirects(&url).into())
    }

    /// Where the bytes of a file are.
    ///
    /// # Errors
    /// As for [`Hub::list`].
    pub(crate) fn resolve(
        &self,
        repo: &str,
        commit: &str,
        path: &str,
        interrupt: &Interrupt,
        note: Note<'_>,
    ) -> Result<Resolved, PullError> {
        let url = format!(
            "{}/{repo}/resolve/{commit}/{}",
            self.endpoint,
            escaped(path)
        );
        let mut retry = Retry::new(&url, self.tries, interrupt, note);
        loop {
            match self.try_resolve(&url) {
                Ok(resolved) => return Ok(resolved),
                Err(failure) => retry.wait(failure)?,
            }
        }
    }

    /// One try of [`Hub::resolve`], by address.
    fn try_resolve(&self, url: &str) -> Result<Resolved, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.client.head(&url)?;
            let headers = response.headers();
            let etag = http::text(headers, "x-linked-etag").or_else(|| http::text(headers, "etag"));
            let linked_size = http::text(headers, "x-linked-size");
            let leads = match response.status().is_redirection() {
                true => Some(self.hop(&url, headers)?),
                false => None,
            };
            // Without these it is a redirect of the page itself, such as a renamed repository's.
            if let (Some(next), None) = (&leads, &linked_size) {
                url = next.clone();
                continue;
            }
            let size = linked_size.or_else(|| http::text(headers, "content-length"));
            let (etag, size) = (
                etag.map(|etag| plain_etag(&etag)),
                size.and_then(|s| s.parse().ok()),
            );
            let (Some(etag), Some(size)) = (etag.filter(|etag| is_name(etag)), size) else {
                return Err(PullError::Protocol {
                    url: http::without_query(&url),
                    found: "an answer without a file's size and etag".to_owned(),
                    expected:
                        "the headers X-Linked-Size and X-Linked-Etag, or Content-Length and ETag"
                            .to_owned(),
                }
                .into());
            };
            return Ok(Resolved {
                url: leads.unwrap_or(url),
                etag,
                size,
            });
        }
        Err(too_many_redirects(&url).into())
    }

    /// A redirect's target. What was asked for under TLS isn't fetched without.
    fn hop(&self, url: &str, headers: &ureq::http::HeaderMap) -> Result<String, PullError> {
        let to = http::location(url, headers).unwrap_or_default();
        let protocol = |found: String, expected: &str| PullError::Protocol {
            url: http::without_query(url),
            found,
            expected: expected.to_owned(),
        };
        let uri: Uri = to
            .parse()
            .map_err(|_| protocol(format!("a redirect to `{to}`"), "an address"))?;
        match uri.scheme_str() {
            Some("https") => Ok(to),
            Some("http") if !url.starts_with("https:") => Ok(to),
            _ => Err(protocol(
                format!("a redirect to `{}`", http::without_query(&to)),
                "one to an https address",
            )),
        }
    }

    /// Follows what redirects remain behind a resolved address; the answer is the bytes' own.
    pub(crate) fn fetch(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.client.get(&url, range)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.hop(&url, response.headers())?;
        }
        Err(too_many_redirects(&url).into())
    }
}

/// How to treat the network.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Tries in a row that may fail.
    pub tries: u32,
    /// A connection without a byte for so long is broken.
    pub stall: Option<Duration>,
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|stall| !stall.is_zero())
}

fn too_many_redirects(url: &str) -> PullError {
    PullError::Protocol {
        url: http::without_query(url),
        found: format!("more than {REDIRECTS} redirects in a row"),
        expected: "a file".to_owned(),
    }
}

fn listing(url: &str, text: &str) -> Result<Listing, PullError> {
    let protocol = |found: String, expected: &str| PullError::Protocol {
        url: http::without_query(url),
        found,
        expected: expected.to_owned(),
    };
    let info: ModelInfo = serde_json::from_str(text).map_err(|error| {
        protocol(
            format!("an answer that cannot be read ({error})"),
            "the hub's list of a repository's files",
        )
    })?;
    if !is_name(&info.sha) {
        return Err(protocol(
            format!("the commit `{}`", info.sha),
            "a commit's name",
        ));
    }
    let mut files = Vec::new();
    for sibling in info.siblings {
        if !is_path(&sibling.rfilename) {
            return Err(protocol(
                format!("a file named `{}`", sibling.rfilename.escape_debug()),
                "a path inside the repository",
            ));
        }
        let lfs = sibling.lfs;
        files.push(HubFile {
            path: sibling.rfilename,
            size: lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size),
            sha256: lfs
                .and_then(|lfs| lfs.sha256)
                .map(|hash| hash.to_ascii_lowercase())
                .filter(|hash| is_sha256(hash)),
            blob: sibling.blob_id,
        });
    }
    Ok(Listing {
        commit: info.sha,
        files,
    })
}

/// `W/"abc"` → `abc`
fn plain_etag(etag: &str) -> String {
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
    match is_sha256(etag) {
        true => etag.to_ascii_lowercase(),
        false => etag.to_owned(),
    }
}

/// A path as a part of an address.
fn escaped(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// `HF_TOKEN`, or what `huggingface-cli login` left.
fn token(env: &Environment) -> Option<String> {
    let clean = |text: &str| {
        let text = text.trim();
        let sendable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        sendable.then(|| text.to_owned())
    };
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .iter()
        .find_map(|name| clean(env.get(*name)?));
    if named.is_some() || is_true(env, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return named;
    }
    let path = match env.get("HF_TOKEN_PATH") {
        Some(path) => path.into(),
        None => super::cache::home(env)?.join("token"),
    };
    clean(&std::fs::read_to_string(path).ok()?)
}

/// A token goes out encrypted, or stays on this machine.
fn may_carry_secrets(endpoint: &str) -> bool {
    let Ok(uri) = endpoint.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    uri.scheme_str() == Some("https")
        || host == "localhost"
        || host.starts_with("127.")
        || host == "[::1]"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_listing() {
        let text = r#"{"sha": "abc", "siblings": [
            {"rfilename": "config.json", "size": 7, "blobId": "0123"},
            {"rfilename": "m.gguf", "size": 9, "blobId": "45", "lfs": {"sha256": "AB12", "size": 9, "pointerSize": 1}}]}"#;
        let found = listing("http://hub", text).unwrap();
        assert_eq!(found.commit, "abc");
        assert_eq!(found.files[0].size, Some(7));
        assert_eq!(found.files[1].sha256, None, "no hash");
        let hostile = r#"{"sha": "abc", "siblings": [{"rfilename": "../../.bashrc"}]}"#;
        assert!(listing("http://hub", hostile).is_err());
        assert!(listing("http://hub", r#"{"sha": "../x"}"#).is_err());
        assert!(listing("http://hub", "<html>").is_err());
    }

    #[test]
    fn cleans_etags_and_paths() {
        assert_eq!(plain_etag("W/\"12-ab\""), "12-ab");
        assert_eq!(
            plain_etag(&format!("\"{}\"", "AB".repeat(32))),
            "ab".repeat(32)
        );
        assert_eq!(escaped("a b/c+d.gguf"), "a%20b/c%2Bd.gguf");
    }

    #[test]
    fn tokens_stay_secret() {
        for (endpoint, wanted) in [
            ("https://huggingface.co", true),
            ("http://127.0.0.1:1", true),
            ("http://localhost:1", true),
            ("http://mirror.example", false),
        ] {
            assert_eq!(may_carry_secrets(endpoint), wanted, "{endpoint}");
        }
        let env: Environment = [("HF_TOKEN".to_owned(), " hf_x\n".to_owned())].into();
        assert_eq!(token(&env).as_deref(), Some("hf_x"));
    }
}
