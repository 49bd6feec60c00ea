//! Nibble planes by AVX2: `vpmaddubsw` into i16, widened to i32 before it could overflow.

use std::arch::x86_64::*;

use super::avx2::{load_bytes, load_integers, sum_i32, widened};
use super::{LINE_BYTES, prefetch_line};
use crate::screen::{PLANE_BYTES, PLANE_COLS};

/// Blocks that an i16 lane sums without overflow: 2 · 2 products a block, each up to 15 · 127, makes 7,620 · 4 = 30,480.
const CHUNK: usize = 4;
/// A row that is left alone has one chain: it waits for its turn in i16 only.
const PLANE_CHAINS: usize = 1;

// Eight sums, two rows of nibbles, one vector, one product of sixteen registers.
plane_walk!(#[target_feature(enable = "avx2,fma,f16c")] 4: 2, 2: 4, 1: 4);

/// `R` rows times `T` vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn plane_tile<const R: usize, const T: usize, const S: usize>(
    rows: &[[u8; PLANE_BYTES]],
    x: [&[[i8; PLANE_COLS]]; T],
    ahead: Option<usize>,
) -> [[i32; R]; T] {
    const { assert!(S == 1, "sums have one chain") };
    let blocks = rows.len() / R;
    for x in x {
        assert!(x.len() == blocks, "vectors are as long as rows");
    }
    let nibble = _mm256_set1_epi8(15);
    let mut sums = [[_mm256_setzero_si256(); R]; T];
    for start in (0..blocks).step_by(CHUNK) {
        if let Some(ahead) = ahead {
            let ahead = rows.as_ptr().cast::<u8>().wrapping_add(ahead);
            for line in (0..R * CHUNK * PLANE_BYTES).step_by(LINE_BYTES) {
                prefetch_line(ahead.wrapping_add(start * R * PLANE_BYTES + line));
            }
        }
        let mut wide = [[_mm256_setzero_si256(); R]; T];
        for i in start..blocks.min(start + CHUNK) {
            for half in 0..2 {
                let mut nibbles = [nibble; R];
                for (r, nibbles) in nibbles.iter_mut().enumerate() {
                    // SAFETY: r < R and i < blocks, and there are R * blocks of them.
                    let both = load_bytes(unsafe { rows.get_unchecked(r * blocks + i) });
                    let wanted = match half {
                        0 => both,
                        _ => _mm256_srli_epi16::<4>(both),
                    };
                    *nibbles = _mm256_and_si256(wanted, nibble);
                }
                for t in 0..T {
                    // SAFETY: i < blocks, the length of each vector.
                    let x: &[[i8; 32]] = unsafe { x[t].get_unchecked(i) }.as_chunks().0;
                    let x = load_integers(&x[half]);
                    for r in 0..R {
                        let products = _mm256_maddubs_epi16(nibbles[r], x);
                        wide[t][r] = _mm256_add_epi16(wide[t][r], products);
                    }
                }
            }
        }
        for (sums, wide) in sums.iter_mut().zip(wide) {
            for (sum, wide) in sums.iter_mut().zip(wide) {
                *sum = _mm256_add_epi32(*sum, widened(wide));
            }
        }
    }
    let mut found = [[0; R]; T];
    for (found, sum) in found.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *found = sum_i32(*sum);
    }
    found
}
