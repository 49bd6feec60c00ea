//! The operating system's part: mapped files, and whatever else needs `unsafe` in this crate. The second unsafe fence.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use bitnet_kernels::SharedBytes;

/// Maps a file read-only.
///
/// A file that another program truncates while it is mapped ends this process with SIGBUS; the supervisor reports it.
///
/// # Errors
/// Those of opening and mapping; an empty file can't be mapped.
pub fn map_file(path: &Path) -> io::Result<SharedBytes> {
    let file = File::open(path)?;
    // SAFETY: the mapping is read-only and private. Bytes that change underneath are plain numbers to us: every length
    // and offset is checked on values already copied out, so no memory rule depends on the file staying as it is.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(SharedBytes::new(map))
}
