//! Where a file goes: into the cache, under its content's name with links to it, or plainly into a directory.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cache::{Cache, write_whole};
use super::error::PullError;
use super::hub::Listing;
use super::part::{self, Lock};
use super::reference::Reference;

/// Characters of the etag in a partial file's name.
const ETAG_SHOWN: usize = 16;

/// A place for a repository's files.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// `huggingface_hub`'s cache.
    Cache(Cache),
    /// A directory; files keep their paths in the repository.
    Directory(PathBuf),
}

/// The paths of one file's download.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The partial file.
    pub part: PathBuf,
    /// The file with the bytes.
    pub file: PathBuf,
    /// To be held while downloading, beside the partial file's own lock.
    pub lock: Option<PathBuf>,
}

impl Place {
    /// The directory that has to exist and to have room.
    pub(crate) fn root(&self) -> &Path {
        match self {
            Place::Cache(cache) => &cache.root,
            Place::Directory(directory) => directory,
        }
    }

    /// The paths for a file with this etag.
    pub(crate) fn target(&self, repo: &str, path: &str, etag: &str) -> Target {
        match self {
            Place::Cache(cache) => {
                let blobs = cache.repo(repo).join("blobs");
                Target {
                    part: blobs.join(format!("{etag}.incomplete")),
                    file: blobs.join(etag),
                    lock: Some(cache.lock(repo, etag)),
                }
            }
            Place::Directory(directory) => {
                let file = directory.join(path);
                let prefix = part_prefix(&file);
                let shown: String = etag.chars().take(ETAG_SHOWN).collect();
                Target {
                    part: file.with_file_name(format!("{prefix}{shown}.part")),
                    file,
                    lock: None,
                }
            }
        }
    }

    /// Makes the directories of a target and removes partial files of content that is no longer offered.
    ///
    /// # Errors
    /// When a directory can't be made.
    pub(crate) fn prepare(
        &self,
        target: &Target,
        repo: &str,
        listing: &Listing,
    ) -> Result<(), PullError> {
        for path in [Some(&target.part), target.lock.as_ref()]
            .into_iter()
            .flatten()
        {
            make_parent(path)?;
        }
        let directory = target.part.parent().unwrap_or(Path::new("."));
        match self {
            Place::Cache(cache) => {
                let offered: HashSet<&str> = listing
                    .files
                    .iter()
                    .flat_map(|file| [file.sha256.as_deref(), file.blob.as_deref()])
                    .flatten()
                    .collect();
                for name in names(directory) {
                    // Names with a further dot are those of Python's running downloads.
                    if let Some(etag) = name.strip_suffix(".incomplete")
                        && !etag.contains('.')
                        && !offered.contains(etag)
                        && directory.join(&name) != target.part
                        && Lock::is_free(&cache.lock(repo, etag))
                    {
                        part::remove_stale(&directory.join(&name));
                    }
                }
            }
            Place::Directory(_) => {
                let prefix = part_prefix(&target.file);
                for name in names(directory) {
                    let path = directory.join(&name);
                    if name.starts_with(&prefix) && name.ends_with(".part") && path != target.part {
                        part::remove_stale(&path);
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes a downloaded file findable; its path.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn publish(
        &self,
        target: &Target,
        repo: &str,
        commit: &str,
        path: &str,
    ) -> Result<PathBuf, PullError> {
        let Place::Cache(cache) = self else {
            return Ok(target.file.clone());
        };
        let link = cache.repo(repo).join("snapshots").join(commit).join(path);
        make_parent(&link)?;
        let up = "../".repeat(2 + path.matches('/').count());
        let blob = target.file.file_name().unwrap_or_default();
        let to = PathBuf::from(format!("{up}blobs")).join(blob);
        if fs::read_link(&link).is_ok_and(|found| found == to) {
            return Ok(link);
        }
        let new = link.with_file_name(format!(".link-{}", std::process::id()));
        let _ = fs::remove_file(&new);
        symlink(&to, &new)
            .and_then(|()| fs::rename(&new, &link))
            .map_err(|cause| PullError::file("link", &link, cause))?;
        Ok(link)
    }

    /// Notes which commit a branch or tag stands for, once all that was wanted of it is here.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn note_commit(&self, reference: &Reference, commit: &str) -> Result<(), PullError> {
        let Place::Cache(cache) = self else {
            return Ok(());
        };
        if reference.revision == commit {
            return Ok(());
        }
        let path = cache
            .repo(&reference.repo)
            .join("refs")
            .join(&reference.revision);
        make_parent(&path)?;
        write_whole(&path, commit).map_err(|cause| PullError::file("write", &path, cause))
    }
}

impl Place {
    /// After a failure: takes away what is of no use to the next run, empty directories included.
    pub(crate) fn tidy(&self, target: &Target) {
        if target.part.exists() || target.file.exists() {
            return;
        }
        if let Some(lock) = &target.lock {
            let _ = fs::remove_file(lock);
        }
        for path in [Some(&target.part), target.lock.as_ref()]
            .into_iter()
            .flatten()
        {
            for directory in path.ancestors().skip(1) {
                if directory == self.root() || fs::remove_dir(directory).is_err() {
                    break;
                }
            }
        }
    }
}

/// `.model.gguf.`: partial files of `model.gguf` start so.
fn part_prefix(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn make_parent(path: &Path) -> Result<(), PullError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            fs::create_dir_all(parent).map_err(|cause| PullError::file("create", parent, cause))
        }
        _ => Ok(()),
    }
}

/// Bytes free for this user in the file system that holds, or will hold, a path.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|path| path.exists())?;
    let system = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(system.blocks_available() as u64 * system.fragment_size() as u64)
}
