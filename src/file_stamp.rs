//! A file as it was at some time, so that another one under its name is noticed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells a file from others, and from itself with other content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileStamp {
    /// Where.
    pub(crate) path: PathBuf,
    /// Its length.
    pub(crate) bytes: u64,
    device: u64,
    inode: u64,
    modified_ns: i128,
}

impl FileStamp {
    /// Looks at a file.
    ///
    /// # Errors
    /// When it isn't there or can't be looked at.
    pub(crate) fn look(path: &Path) -> io::Result<FileStamp> {
        let found = std::fs::metadata(path)?;
        Ok(FileStamp {
            path: path.to_owned(),
            bytes: found.len(),
            device: found.dev(),
            inode: found.ino(),
            modified_ns: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        })
    }

    /// Another file is in its place, or other content in it.
    pub(crate) fn has_changed(&self) -> bool {
        FileStamp::look(&self.path).is_ok_and(|now| now != *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_put_in_its_place_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "one").unwrap();
        let seen = FileStamp::look(&path).unwrap();
        assert_eq!(seen.bytes, 3);
        assert!(!seen.has_changed());
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(seen.has_changed());
        assert!(FileStamp::look(&other).is_err());
    }
}
