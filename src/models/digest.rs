//! SHA-256 of files and streams, as 64 lower-case hexadecimal digits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// A hash that grows with the bytes it is fed.
#[derive(Clone, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// More bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them.
    pub(crate) fn finish(self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0.finalize() {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// Feeds the rest of `source`, telling `seen` how many bytes came each time; stops early when it says so.
    ///
    /// # Errors
    /// When reading fails.
    pub(crate) fn update_from(
        &mut self,
        source: &mut impl Read,
        seen: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.update(&buffer[..n]);
                    if !seen(n as u64) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Hash of a whole file; `None` if `seen` stopped it.
///
/// # Errors
/// When it can't be read.
pub(crate) fn of_file(
    path: &Path,
    seen: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Option<String>> {
    let mut hasher = Hasher::default();
    let mut whole = true;
    hasher.update_from(&mut File::open(path)?, &mut |n| {
        whole = seen(n);
        whole
    })?;
    Ok(whole.then(|| hasher.finish()))
}

/// Whether a text is a SHA-256 in hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_the_standard_says() {
        // FIPS 180-2, appendix B.1.
        let mut hasher = Hasher::default();
        hasher.update_from(&mut &b"abc"[..], &mut |_| true).unwrap();
        let hash = hasher.finish();
        assert_eq!(
            hash,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(is_sha256(&hash));
        assert!(!is_sha256(&hash[1..]));
        assert!(!is_sha256(&hash.replace('b', "g")));
    }
}
