//! How fast this machine reads memory and multiplies: the plainest loops there are, for measurements to stand beside.

/// Multiply-adds of a round of [`byte_products`].
pub const PRODUCTS_PER_ROUND: usize = 320;

/// Products of bytes by `vpmaddubsw`, added up by `vpaddw`, all in registers: what AVX2 can reach at most. `None` without AVX2.
pub fn byte_products(rounds: usize) -> Option<i32> {
    crate::arch::byte_products(rounds)
}

/// Adds up all 8-byte words (a remainder below 64 bytes is left out), in eight sums side by side: as fast as memory
/// gives the bytes, for buffers that no cache holds.
pub fn read_all(bytes: &[u8]) -> u64 {
    let (blocks, _) = bytes.as_chunks::<64>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_whole_blocks() {
        let mut bytes = vec![0u8; 64 * 3 + 7];
        for (n, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(n as u64).to_le_bytes());
        }
        assert_eq!(read_all(&bytes), (0..24).sum::<u64>());
        assert_eq!(read_all(&[1; 63]), 0);
    }
}
