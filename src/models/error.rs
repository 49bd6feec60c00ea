//! What can go wrong while a model is fetched, with the facts in it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::size;

/// Why a model wasn't fetched.
#[derive(Debug, Error)]
pub(crate) enum PullError {
    /// No name, repository or address that makes sense.
    #[error("found `{found}`, expected {expected}")]
    Reference {
        /// What was typed.
        found: String,
        /// What can be typed.
        expected: String,
    },
    /// An environment variable that makes no sense.
    #[error("environment {name} is `{found}`, expected {expected}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// The hub said no.
    #[error("{url} answered {status}{message}")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// `: reason`, or empty.
        message: String,
        /// The hub's own code, such as `GatedRepo`.
        code: Option<String>,
        /// Whether a token was sent.
        token: bool,
    },
    /// All tries failed.
    #[error("{url}: {cause}, after {tries} tries without progress")]
    Network {
        /// What was asked for.
        url: String,
        /// The last reason.
        cause: String,
        /// How many in a row.
        tries: u32,
    },
    /// The hub wants to be left alone for longer than anybody would wait.
    #[error("{url} answered {status} and asks to come back in {wait_s} s")]
    ComeBackLater {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// Seconds.
        wait_s: u64,
    },
    /// An answer that isn't the hub's protocol.
    #[error("{url}: found {found}, expected {expected}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What came.
        found: String,
        /// What should have come.
        expected: String,
    },
    /// The repository lacks what is wanted.
    #[error("{repo} has no {wanted}; it has {}", or_nothing(.found))]
    NoFile {
        /// The repository.
        repo: String,
        /// What was looked for.
        wanted: String,
        /// What is there.
        found: Vec<String>,
    },
    /// Nothing says which.
    #[error("{repo} has {} GGUF files, expected one: {}", .found.len(), .found.join(", "))]
    SeveralFiles {
        /// The repository.
        repo: String,
        /// What is there.
        found: Vec<String>,
    },
    /// Two sources disagree about a size.
    #[error("{file}: found {found} bytes ({found_by}), expected {expected} ({expected_by})")]
    Size {
        /// The file.
        file: String,
        /// Bytes.
        found: u64,
        /// Who says so.
        found_by: String,
        /// Bytes.
        expected: u64,
        /// Who says so.
        expected_by: String,
    },
    /// The bytes aren't those that were promised.
    #[error("{file}: sha256 {found}, expected {expected} ({by})")]
    Hash {
        /// The file.
        file: String,
        /// What came.
        found: String,
        /// What was promised.
        expected: String,
        /// By whom.
        by: &'static str,
    },
    /// The hub has another file than the one this program knows.
    #[error(
        "{file} has sha256 {found} on the hub, expected {expected}, which this program knows as the published file"
    )]
    Changed {
        /// The file.
        file: String,
        /// The hub's.
        found: String,
        /// The catalogue's.
        expected: String,
    },
    /// The file system is too full.
    #[error("{} are free in `{}`, {} are needed", size(*.free), .directory.display(), size(*.needed))]
    Space {
        /// Where.
        directory: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are missing.
        needed: u64,
    },
    /// A file operation failed.
    #[error("cannot {doing} `{}`: {cause}", .path.display())]
    File {
        /// Such as `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// No further thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// Another process holds the file and does nothing with it.
    #[error("another process has held `{}` for {waited_s} s without writing to it", .path.display())]
    Held {
        /// The lock.
        path: PathBuf,
        /// Seconds.
        waited_s: u64,
    },
    /// Not in the cache, and the network may not be used.
    #[error("{what} is not in `{}`, and HF_HUB_OFFLINE is set", .place.display())]
    Offline {
        /// What was asked for.
        what: String,
        /// The cache or the directory.
        place: PathBuf,
    },
    /// A file of the cache whose bytes changed.
    #[error("`{}` is damaged: sha256 {found}, expected {expected} (its name in the cache)", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// Ctrl-C.
    #[error("stopped{}", kept(*.kept_bytes, .file))]
    Stopped {
        /// The file.
        file: String,
        /// Bytes in the partial file.
        kept_bytes: u64,
    },
}

impl PullError {
    /// A failed file operation.
    pub(crate) fn file(doing: &'static str, path: &Path, cause: io::Error) -> PullError {
        PullError::File {
            doing,
            path: path.to_owned(),
            cause,
        }
    }

    /// What to do next, if there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            PullError::Refused { code, .. } if code.as_deref() == Some("GatedRepo") => {
                "accept the terms on the repository's page, and set HF_TOKEN to a token of that account".to_owned()
            }
            PullError::Refused { status: 401 | 403, token: true, .. } => {
                "check HF_TOKEN, and the spelling: the hub answers so for repositories that do not exist, too".to_owned()
            }
            PullError::Refused { status: 401 | 403, .. } => {
                "check the spelling; a private or gated repository needs HF_TOKEN".to_owned()
            }
            PullError::Refused { status: 404, .. } => {
                "`bitnet-launch models` lists the known ones".to_owned()
            }
            PullError::Network { .. } => {
                "run the same command again: it goes on where it stopped; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy"
                    .to_owned()
            }
            PullError::NoFile { repo, found, .. } | PullError::SeveralFiles { repo, found } => {
                let file = found.first()?;
                format!("name one: `bitnet-launch pull {repo}:{file}`")
            }
            PullError::Changed { .. } => {
                "`--trust-hub` takes what the hub has".to_owned()
            }
            PullError::Space { .. } => {
                "free some space, or choose another place with `--dir DIR` or HF_HOME".to_owned()
            }
            PullError::File { .. } | PullError::Stopped { .. } => {
                "run the same command again: it goes on where it stopped".to_owned()
            }
            PullError::Damaged { .. } => {
                "the same command without HF_HUB_OFFLINE downloads it again".to_owned()
            }
            PullError::Hash { .. } => {
                "what was downloaded is removed; try again, or another mirror (HF_ENDPOINT)".to_owned()
            }
            PullError::Reference { .. } => "`bitnet-launch models` lists the known ones".to_owned(),
            PullError::Variable { .. }
            | PullError::Refused { .. }
            | PullError::ComeBackLater { .. }
            | PullError::Protocol { .. }
            | PullError::Size { .. }
            | PullError::Thread(_)
            | PullError::Held { .. }
            | PullError::Offline { .. } => return None,
        })
    }
}

fn kept(bytes: u64, file: &str) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!("; {} of {file} are kept", size(bytes)),
    }
}

fn or_nothing(found: &[String]) -> String {
    const SHOWN: usize = 12;
    match found.len() {
        0 => "no files".to_owned(),
        1..=SHOWN => found.join(", "),
        n => format!("{} and {} more", found[..SHOWN].join(", "), n - SHOWN),
    }
}
