//! Where facts are read: the running system, a directory that stands in for `/`, or a report that holds its files.
//!
//! A report is a text: `=== PATH` before each file's content. `doctor --save-host` writes one, `--host-root` reads it, and
//! the fixtures of the tests are such reports. A file that may not be read has the content [`DENIED`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Stands for the content of a file that this user may not read.
const DENIED: &str = "(permission denied)";

/// What stands for `/`.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    files: Files,
    /// What was read, when it is to be kept.
    kept: Option<Arc<Mutex<BTreeMap<String, String>>>>,
}

#[derive(Debug, Clone)]
enum Files {
    Under(PathBuf),
    Report(Arc<BTreeMap<String, String>>),
}

impl Root {
    /// The running system.
    pub(crate) fn live() -> Root {
        Root::at("/")
    }

    /// Whether this is the running system.
    pub(crate) fn is_live(&self) -> bool {
        matches!(&self.files, Files::Under(path) if path == Path::new("/"))
    }

    /// A tree that stands in for one.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Root {
        Root {
            files: Files::Under(path.into()),
            kept: None,
        }
    }

    /// A report.
    pub(crate) fn of_report(text: &str) -> Root {
        let mut files = BTreeMap::new();
        for part in format!("\n{text}").split("\n=== ").skip(1) {
            let (path, content) = part.split_once('\n').unwrap_or((part, ""));
            files.insert(path.trim().to_owned(), content.to_owned());
        }
        Root {
            files: Files::Report(Arc::new(files)),
            kept: None,
        }
    }

    /// A directory, or a file with a report.
    ///
    /// # Errors
    /// Those of reading it; `InvalidData` for a file that is no report.
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        if path.is_dir() {
            return Ok(Root::at(path));
        }
        let root = Root::of_report(&std::fs::read_to_string(path)?);
        match &root.files {
            Files::Report(files) if files.is_empty() => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "neither a directory nor a report with lines like `=== /proc/cpuinfo`",
            )),
            _ => Ok(root),
        }
    }

    /// The running system, keeping what is read for [`Root::report`].
    pub(crate) fn recording() -> Root {
        Root {
            kept: Some(Arc::default()),
            ..Root::live()
        }
    }

    /// Everything read so far, as a report.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        if let Some(kept) = &self.kept {
            for (path, content) in kept.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let _ = writeln!(text, "=== {path}\n{}", without_serial(content));
            }
        }
        text
    }

    /// A file's text without white space around it.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let path = path.as_ref();
        let read = match &self.files {
            Files::Under(_) => std::fs::read(self.path(path))
                .map(|bytes| trimmed(&String::from_utf8_lossy(&bytes))),
            Files::Report(files) => match files.get(&*path.to_string_lossy()).map(|t| trimmed(t)) {
                Some(text) if text == DENIED => Err(io::ErrorKind::PermissionDenied.into()),
                Some(text) => Ok(text),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        match &read {
            Ok(text) => self.keep(path, text),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.keep(path, DENIED);
            }
            Err(_) => {}
        }
        read
    }

    fn keep(&self, path: &Path, text: &str) {
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(path.to_string_lossy().into_owned(), text.to_owned());
        }
    }

    /// A file's text; `None` if there is no such file or it can't be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        self.read(path).ok()
    }

    /// A file's number.
    pub(crate) fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// A file's list of CPUs, such as `0-3,6`.
    pub(crate) fn cpus(&self, path: impl AsRef<Path>) -> Option<super::CpuSet> {
        self.text(path)?.parse().ok()
    }

    /// Whether there is such a file or directory.
    pub(crate) fn has(&self, path: impl AsRef<Path>) -> bool {
        let path = path.as_ref();
        match &self.files {
            Files::Under(_) => {
                let found = self.path(path);
                if found.is_file() && self.kept.is_some() {
                    let _ = self.read(path);
                }
                found.exists()
            }
            Files::Report(files) => files.keys().any(|file| Path::new(file).starts_with(path)),
        }
    }

    /// Names in a directory, sorted; empty if there is no such directory.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let path = path.as_ref();
        let mut names: Vec<String> = match &self.files {
            Files::Under(_) => std::fs::read_dir(self.path(path))
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Files::Report(files) => files
                .keys()
                .filter_map(|file| Path::new(file).strip_prefix(path).ok()?.components().next())
                .map(|name| name.as_os_str().to_string_lossy().into_owned())
                .collect(),
        };
        names.sort();
        names.dedup();
        names
    }

    fn path(&self, path: &Path) -> PathBuf {
        match &self.files {
            Files::Under(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            Files::Report(_) => path.to_owned(),
        }
    }
}

fn trimmed(text: &str) -> String {
    text.trim_matches(['\0', ' ', '\n', '\t']).to_owned()
}

/// A board's serial number is nobody's business.
fn without_serial(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("Serial"));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_answers_like_a_tree() {
        let root = Root::of_report(
            "# A comment.\n=== /a/b/c\n17\n\n=== /a/d\n0-3\n=== /a/secret\n(permission denied)\n",
        );
        assert_eq!(root.number::<u32>("/a/b/c"), Some(17));
        assert_eq!(root.cpus("/a/d").map(|set| set.len()), Some(4));
        assert_eq!(root.names("/a"), ["b", "d", "secret"]);
        assert!(root.has("/a/b") && root.has("/a/d") && !root.has("/a/e"));
        let denied = root.read("/a/secret").unwrap_err().kind();
        assert_eq!(denied, io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_is_recorded_reads_back_the_same() {
        let live = Root::recording();
        let (release, cpus) = (
            live.text("/proc/sys/kernel/osrelease"),
            live.text("/proc/stat"),
        );
        let back = Root::of_report(&live.report());
        assert!(release.is_some() && cpus.is_some());
        assert_eq!(back.text("/proc/sys/kernel/osrelease"), release);
        assert_eq!(back.text("/proc/stat"), cpus);
    }

    #[test]
    fn serial_numbers_stay_at_home() {
        assert_eq!(without_serial("a\nSerial\t: 17\nb"), "a\nb");
    }

    #[test]
    fn a_file_that_is_no_report_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        let error = Root::open(file.path()).unwrap_err();
        assert!(error.to_string().contains("=== /proc/cpuinfo"), "{error}");
        assert!(Root::open(Path::new("/nowhere/at/all")).is_err());
    }
}
