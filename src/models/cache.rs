//! The hub's cache on disk, laid out as Python's `huggingface_hub` does it, so that either finds what the other fetched:
//!
//! ```text
//! HF_HUB_CACHE/models--ORG--REPO/blobs/ETAG              the bytes
//!                               /snapshots/COMMIT/FILE   links to blobs
//!                               /refs/REVISION           the commit
//!             /.locks/models--ORG--REPO/ETAG.lock
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::reference::{Reference, is_name};
use crate::settings::Environment;

/// The cache of one user.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    /// Its directory, which need not exist.
    pub root: PathBuf,
}

/// `HF_HOME`, or where it is when nobody says.
pub(crate) fn home(env: &Environment) -> Option<PathBuf> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    let user_home = set("HOME").map(PathBuf::from);
    if let Some(home) = set("HF_HOME") {
        return Some(expanded(home, user_home.as_deref()));
    }
    let base = match set("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => user_home?.join(".cache"),
    };
    Some(base.join("huggingface"))
}

/// `~` in front is the user's directory.
fn expanded(path: &str, user_home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), user_home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

impl Cache {
    /// The cache that the environment names; `None` where there is neither `HOME` nor a variable.
    pub(crate) fn from_env(env: &Environment) -> Option<Cache> {
        let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let user_home = set("HOME").map(PathBuf::from);
        let named = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let root = match named {
            Some(path) => expanded(path, user_home.as_deref()),
            None => home(env)?.join("hub"),
        };
        Some(Cache { root })
    }

    /// A repository's directory.
    pub(crate) fn repo(&self, repo: &str) -> PathBuf {
        self.root.join(repo_name(repo))
    }

    /// The lock of one file's bytes.
    pub(crate) fn lock(&self, repo: &str, etag: &str) -> PathBuf {
        let directory = self.root.join(".locks").join(repo_name(repo));
        directory.join(format!("{etag}.lock"))
    }

    /// The directory with a repository's files, by branch, tag or commit; of `main` the newest, if nothing says.
    pub(crate) fn snapshot(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let directory = self.repo(repo);
        let snapshots = directory.join("snapshots");
        let commit = fs::read_to_string(directory.join("refs").join(revision)).ok();
        let named = commit.as_deref().map_or(revision, str::trim);
        if is_name(named) && snapshots.join(named).is_dir() {
            return Some(snapshots.join(named));
        }
        if revision != super::reference::MAIN {
            return None;
        }
        let age = |path: &PathBuf| {
            let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
            changed.unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let all = fs::read_dir(snapshots).ok()?.flatten().map(|e| e.path());
        all.filter(|path| path.is_dir()).max_by_key(age)
    }

    /// The file of a reference, if it is here: the one named, or the only GGUF file, or the only one of those in I2_S.
    pub(crate) fn find(&self, reference: &Reference) -> Option<PathBuf> {
        let snapshot = self.snapshot(&reference.repo, &reference.revision)?;
        if let Some(file) = &reference.file
            && snapshot.join(file).is_file()
        {
            return Some(snapshot.join(file));
        }
        let files = files(&snapshot, &snapshot);
        let chosen = choose_gguf(&files, reference.file.as_deref()).ok()?;
        Some(snapshot.join(chosen))
    }
}

/// Why no GGUF file could be chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoChoice {
    /// There is none.
    None,
    /// There are these.
    Several(Vec<String>),
}

/// The GGUF file that is meant: the one named in full or by a part such as `i2_s`, else the only one, else the only I2_S.
pub(crate) fn choose_gguf(files: &[String], wanted: Option<&str>) -> Result<String, NoChoice> {
    if let Some(wanted) = wanted
        && files.iter().any(|file| file == wanted)
    {
        return Ok(wanted.to_owned());
    }
    let gguf: Vec<&String> = files.iter().filter(|file| is_gguf(file)).collect();
    let having = |part: &str| -> Vec<&String> {
        let part = part.to_ascii_lowercase();
        let has = |file: &&&String| file.to_ascii_lowercase().contains(&part);
        gguf.iter().filter(has).copied().collect()
    };
    let candidates = match wanted {
        Some(part) => having(part),
        None if gguf.len() > 1 && having("i2_s").len() == 1 => having("i2_s"),
        None => gguf.clone(),
    };
    match candidates.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(NoChoice::None),
        several => Err(NoChoice::Several(
            several.iter().map(|file| (*file).clone()).collect(),
        )),
    }
}

/// By its name.
pub(crate) fn is_gguf(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".gguf")
}

/// Files below a directory, as paths relative to `root`, sorted.
pub(super) fn files(directory: &Path, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&path, root));
        } else if path.is_file()
            && let Ok(relative) = path.strip_prefix(root)
        {
            found.push(relative.to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

fn repo_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

/// Writes a small file whole or not at all.
///
/// # Errors
/// When it can't be written.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&next, text)?;
    fs::rename(&next, path).inspect_err(|_| {
        let _ = fs::remove_file(&next);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn finds_the_cache_as_python_does() {
        for (pairs, wanted) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
        ] {
            assert_eq!(
                Cache::from_env(&env(pairs)).unwrap().root,
                Path::new(wanted)
            );
        }
        assert!(Cache::from_env(&env(&[])).is_none());
    }

    #[test]
    fn chooses_the_file_that_is_meant() {
        let files: Vec<String> = ["README.md", "a-i2_s.gguf", "b-TQ2_0.gguf", "c-tq1_0.gguf"]
            .map(str::to_owned)
            .into();
        let chosen = |wanted| choose_gguf(&files, wanted);
        assert_eq!(chosen(None).unwrap(), "a-i2_s.gguf");
        assert_eq!(chosen(Some("tq2_0")).unwrap(), "b-TQ2_0.gguf");
        assert_eq!(chosen(Some("c-tq1_0.gguf")).unwrap(), "c-tq1_0.gguf");
        assert_eq!(chosen(Some("q4")), Err(NoChoice::None));
        assert!(matches!(chosen(Some("tq")), Err(NoChoice::Several(two)) if two.len() == 2));
        assert_eq!(choose_gguf(&files[..1], None), Err(NoChoice::None));
        assert_eq!(choose_gguf(&files[1..2], None).unwrap(), "a-i2_s.gguf");
    }

    #[test]
    fn finds_snapshots() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache {
            root: directory.path().to_owned(),
        };
        let reference = Reference::parse("a/b").unwrap();
        assert_eq!(cache.find(&reference), None);
        let repo = cache.repo("a/b");
        for commit in ["old", "new"] {
            fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
        }
        fs::write(repo.join("snapshots/old/m.gguf"), "GGUF").unwrap();
        fs::create_dir(repo.join("refs")).unwrap();
        write_whole(&repo.join("refs/main"), "old").unwrap();
        let found = cache.find(&reference).unwrap();
        assert!(found.ends_with("models--a--b/snapshots/old/m.gguf"));
        let named = Reference::parse("a/b:m.gguf@old").unwrap();
        assert_eq!(cache.find(&named), Some(found));
        assert_eq!(cache.find(&Reference::parse("a/b@v2").unwrap()), None);
    }
}
