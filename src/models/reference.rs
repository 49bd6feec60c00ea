//! What can be typed to name a model: a name of the catalogue, `ORG/REPO`, `ORG/REPO:FILE`, either with `@REVISION`, or the
//! address of a page on the hub.

use std::fmt;

use super::catalogue::{self, Model};
use super::error::PullError;

/// The branch that is meant when nobody says.
pub(crate) const MAIN: &str = "main";

/// A repository on the hub, perhaps with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `ORG/REPO`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// A path in the repository, or a part of a file's name such as `i2_s`.
    pub file: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        if self.revision != MAIN {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

impl Reference {
    /// Reads what was typed; `None` if it is neither a name of the catalogue nor has the form of a repository.
    pub(crate) fn read(text: &str) -> Option<Reference> {
        let text = text.trim();
        if let Some(rest) = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
        {
            return from_address(rest);
        }
        let (text, revision) = match text.split_once('@') {
            Some((text, revision)) => (text, revision),
            None => (text, MAIN),
        };
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        let (repo, known) = match catalogue::find(repo) {
            Some(model) => {
                let (repo, file) = model.wanted();
                (repo, file)
            }
            None => (repo, None),
        };
        let file = file.or(known);
        let plausible = is_repo(repo) && is_name(revision) && file.is_none_or(is_path);
        plausible.then(|| Reference {
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// The same, with an error for what isn't one.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(text: &str) -> Result<Reference, PullError> {
        Reference::read(text).ok_or_else(|| PullError::Reference {
            found: text.to_owned(),
            expected: "a name that `bitnet-launch models` lists, ORG/REPO, ORG/REPO:FILE or the address of a page on the hub"
                .to_owned(),
        })
    }

    /// What the catalogue knows about the repository.
    pub(crate) fn known(&self) -> Option<&'static Model> {
        catalogue::by_repo(&self.repo)
    }
}

/// `huggingface.co/ORG/REPO[/(resolve|blob|tree|raw)/REVISION[/FILE]]`, without the scheme.
fn from_address(rest: &str) -> Option<Reference> {
    let rest = rest.split(['?', '#']).next()?;
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    let _host = parts.next()?;
    let repo = format!("{}/{}", parts.next()?, parts.next()?);
    let mut reference = Reference {
        repo,
        revision: MAIN.to_owned(),
        file: None,
    };
    match parts.next() {
        None => {}
        Some("resolve" | "blob" | "tree" | "raw") => {
            reference.revision = parts.next()?.to_owned();
            let file: Vec<&str> = parts.collect();
            reference.file = (!file.is_empty()).then(|| file.join("/"));
        }
        Some(_) => return None,
    }
    let plausible = is_repo(&reference.repo)
        && is_name(&reference.revision)
        && reference.file.as_deref().is_none_or(is_path);
    plausible.then_some(reference)
}

/// Two names with a slash between, and no file's ending.
fn is_repo(text: &str) -> bool {
    let ends_as_file = text.to_ascii_lowercase().ends_with(".gguf");
    !ends_as_file
        && text
            .split_once('/')
            .is_some_and(|(org, name)| is_name(org) && is_name(name))
}

/// Letters, digits, `-`, `_` and `.`, not `.` in front: what can be a directory's name.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=200).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed)
}

/// A path that stays inside the directory it is put in.
pub(crate) fn is_path(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0'])
    };
    text.len() <= 500 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, String, Option<String>)> {
        Reference::read(text).map(|r| (r.repo, r.revision, r.file))
    }

    fn found(repo: &str, revision: &str, file: &str) -> Option<(String, String, Option<String>)> {
        let file = (!file.is_empty()).then(|| file.to_owned());
        Some((repo.to_owned(), revision.to_owned(), file))
    }

    #[test]
    fn reads_what_people_type() {
        let official = found(
            "microsoft/bitnet-b1.58-2B-4T-gguf",
            "main",
            "ggml-model-i2_s.gguf",
        );
        assert_eq!(read("2b-4t"), official);
        assert_eq!(read(" 2B-4T "), official);
        assert_eq!(read("a/b"), found("a/b", "main", ""));
        assert_eq!(read("a/b:I2_S@v1"), found("a/b", "v1", "I2_S"));
        assert_eq!(read("a/b:x/y.gguf"), found("a/b", "main", "x/y.gguf"));
        let page = "https://huggingface.co/a/b";
        assert_eq!(read(page), found("a/b", "main", ""));
        let file = "https://huggingface.co/a/b/resolve/main/x.gguf?download=true";
        assert_eq!(read(file), found("a/b", "main", "x.gguf"));
    }

    #[test]
    fn takes_no_paths() {
        for text in [
            "",
            "model.gguf",
            "models/model.gguf",
            "/models/x",
            "./a/b",
            "../b",
            "a/..",
            "a/b/c",
            "a/b:../../etc/passwd",
            "a/b:/etc/passwd",
            "a/b@../x",
            "https://huggingface.co/a",
            "https://huggingface.co/a/b/discussions/1",
            "https://huggingface.co/a/b/resolve/main/../../x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
