//! Bytes that several owners share: a slice of a mapped file, of the binary itself or of a heap buffer.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A range of bytes kept alive by whoever owns them. Cloning is cheap and copies nothing.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        SharedBytes {
            owner: Arc::new(owner),
            range,
        }
    }

    /// A part of these bytes; `None` when `range` is not inside them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        let end = self.range.start + range.end;
        Some(SharedBytes {
            owner: Arc::clone(&self.owner),
            range: start..end,
        })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::SharedBytes;

    #[test]
    fn slices_stay_inside() {
        let bytes = SharedBytes::new(vec![1u8, 2, 3, 4]);
        let tail = bytes.slice(1..4).unwrap();
        assert_eq!(&*tail, [2, 3, 4]);
        assert_eq!(&*tail.slice(1..2).unwrap(), [3]);
        assert!(tail.slice(0..4).is_none());
        assert!(tail.slice(usize::MAX..usize::MAX).is_none());
    }
}
