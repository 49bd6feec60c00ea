//! How many connections the limit of open files allows: one that can't be accepted would hang, one that is refused knows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Connections served at a time where nothing stands against it.
const WANTED: u64 = 512;
/// Files for everything else: connections that are told to come back, listening sockets, the engine's, logs, slot files.
const OTHER_FILES: u64 = 128;
/// However few files there may be, somebody has to be served.
const LEAST: u64 = 8;

/// Raises the soft limit of open files as far as is of use, and tells the bound that fits.
pub(crate) fn affordable() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return WANTED as usize;
    };
    let wanted = (WANTED + OTHER_FILES).min(hard);
    let mut files = soft;
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        files = wanted;
    }
    let bound = bound(files);
    if bound < WANTED as usize {
        tracing::warn!(
            "at most {bound} connections at a time: {files} files may be open, {} are wanted (`ulimit -n`)",
            WANTED + OTHER_FILES
        );
    }
    bound
}

fn bound(files: u64) -> usize {
    files.saturating_sub(OTHER_FILES).clamp(LEAST, WANTED) as usize
}

#[cfg(test)]
mod tests {
    use super::bound;

    #[test]
    fn connections_leave_files_for_the_rest() {
        for (files, connections) in [
            (u64::MAX, 512),
            (1024, 512),
            (640, 512),
            (256, 128),
            (64, 8),
        ] {
            assert_eq!(bound(files), connections, "{files}");
        }
    }
}
