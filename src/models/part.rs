//! A partial file: always the first bytes of the whole one, so that its length says where to go on. Locked while open, so
//! that two downloads of one file take turns.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::digest::Hasher;
use super::error::PullError;
use crate::interrupt::Interrupt;

/// Between two looks at a lock that somebody else holds.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Somebody who holds the lock and writes nothing for so long is given up on.
const HELD_TOO_LONG: Duration = Duration::from_secs(300);

/// The open file.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Part {
    /// Opens or creates the file; waits while somebody else writes it.
    ///
    /// # Errors
    /// When it can't be opened, or who holds it does nothing.
    pub(crate) fn open(
        path: &Path,
        interrupt: &Interrupt,
        note: &dyn Fn(&str),
    ) -> Result<Part, PullError> {
        let mut told = false;
        let mut held = Held::new(path);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(path)
                .map_err(|cause| PullError::file("create", path, cause))?;
            match lock(&file, path, interrupt, &mut held, || {
                if !std::mem::replace(&mut told, true) {
                    note("another process is downloading this file; waiting for it");
                }
            })? {
                Locked::Yes => {}
                Locked::Stopped => {
                    return Err(PullError::Stopped {
                        file: path.display().to_string(),
                        kept_bytes: held.bytes,
                    });
                }
            }
            // Whoever held it may have given it its final name, or removed it.
            if !is_same(&file, path) {
                continue;
            }
            let bytes = file
                .metadata()
                .map_err(|cause| PullError::file("read", path, cause))?
                .len();
            return Ok(Part {
                file,
                path: path.to_owned(),
                bytes,
            });
        }
    }

    /// Bytes in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Starts anew.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn clear(&mut self) -> Result<(), PullError> {
        let done = self.file.set_len(0);
        done.map_err(|cause| PullError::file("empty", &self.path, cause))?;
        self.bytes = 0;
        Ok(())
    }

    /// Adds bytes at the end. What a failed write left stands: it is right as far as it goes.
    ///
    /// # Errors
    /// When the file system refuses, such as a full one.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        let done = self.file.write_all(bytes);
        done.map_err(|cause| PullError::file("write", &self.path, cause))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Feeds what is there to a hash; `seen` gets the bytes and may stop it.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn hash(
        &self,
        hasher: &mut Hasher,
        seen: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), PullError> {
        let mut read = || -> io::Result<()> {
            let mut file = File::open(&self.path)?;
            hasher.update_from(&mut file, seen)
        };
        read().map_err(|cause| PullError::file("read", &self.path, cause))
    }

    /// Gives the file its final name, once its bytes are safely on the disk. An existing file is replaced in one step.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn finish(self, destination: &Path) -> Result<(), PullError> {
        let saved = self.file.sync_all();
        saved.map_err(|cause| PullError::file("save", &self.path, cause))?;
        let named = fs::rename(&self.path, destination);
        named.map_err(|cause| PullError::file("create", destination, cause))?;
        if let Some(directory) = destination.parent() {
            // Not every file system knows how to save a directory.
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }

    /// Removes the file.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Removes the file if it is of no use to the next run.
    pub(crate) fn remove_if_empty(self) {
        let bytes = self.file.metadata().map(|metadata| metadata.len());
        if matches!(bytes, Ok(0)) {
            self.remove();
        }
    }
}

/// A lock file that stays, as `huggingface_hub` uses them. Where locks don't work it is as good as none.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; waits as long as `watched` grows.
    ///
    /// # Errors
    /// As for [`Part::open`].
    pub(crate) fn take(
        path: &Path,
        watched: &Path,
        interrupt: &Interrupt,
        note: &dyn Fn(&str),
    ) -> Result<Lock, PullError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|cause| PullError::file("create", path, cause))?;
        let mut told = false;
        let mut held = Held::new(watched);
        let locked = lock(&file, path, interrupt, &mut held, || {
            if !std::mem::replace(&mut told, true) {
                note("another process is downloading this file; waiting for it");
            }
        })?;
        match locked {
            Locked::Yes => Ok(Lock { _file: file }),
            Locked::Stopped => Err(PullError::Stopped {
                file: watched.display().to_string(),
                kept_bytes: held.bytes,
            }),
        }
    }

    /// Whether nobody holds it.
    pub(crate) fn is_free(path: &Path) -> bool {
        match File::open(path) {
            Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => true,
        }
    }
}

/// Removes a partial file that nobody writes any more.
pub(crate) fn remove_stale(path: &Path) {
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

enum Locked {
    Yes,
    Stopped,
}

/// How long a file has not changed.
struct Held {
    watched: PathBuf,
    bytes: u64,
    since: Instant,
}

impl Held {
    fn new(watched: &Path) -> Held {
        Held {
            watched: watched.to_owned(),
            bytes: 0,
            since: Instant::now(),
        }
    }

    fn look(&mut self) -> Duration {
        let bytes = fs::metadata(&self.watched).map_or(0, |metadata| metadata.len());
        if bytes != self.bytes {
            self.bytes = bytes;
            self.since = Instant::now();
        }
        self.since.elapsed()
    }
}

fn lock(
    file: &File,
    path: &Path,
    interrupt: &Interrupt,
    held: &mut Held,
    mut tell: impl FnMut(),
) -> Result<Locked, PullError> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Locked::Yes),
            Err(TryLockError::WouldBlock) => tell(),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(Locked::Yes);
            }
            Err(TryLockError::Error(cause)) => {
                return Err(PullError::file("lock", path, cause));
            }
        }
        if held.look() > HELD_TOO_LONG {
            return Err(PullError::Held {
                path: path.to_owned(),
                waited_s: HELD_TOO_LONG.as_secs(),
            });
        }
        if !interrupt.sleep(LOOK_AGAIN) {
            return Ok(Locked::Stopped);
        }
    }
}

/// Whether the open file is still the one with this name.
fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
