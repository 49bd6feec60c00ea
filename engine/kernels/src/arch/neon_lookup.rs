//! TL1 and TL2 on NEON: tables by `tbl`, sixteen rows at once; products by `smlal`, column by column.

use std::arch::aarch64::*;
use std::mem::MaybeUninit;

use super::finish;
use super::grouped::*;
use super::neon::{load_bytes, prefetch_at};
use crate::lookup::{self, BLOCK_LOOKUPS, GROUP_ROWS, GroupedRows};
use crate::{QuantRow, QuantRows};

/// Groups that share a load of a table.
const GROUPS: usize = 2;
/// A byte per row of a group.
type Bytes = [uint8x16_t; 2];
/// An i16 per row, in their order.
type Wide = [int16x8_t; 4];

grouped_matmul!(#[target_feature(enable = "neon")]);

#[inline]
#[target_feature(enable = "neon")]
fn zero_wide() -> Wide {
    [vdupq_n_s16(0); 4]
}

/// The sums of `WIDTH` activations that each index stands for.
#[inline]
#[target_feature(enable = "neon")]
fn fill_table<const WIDTH: usize>(x: &[i8], table: &mut Table) {
    let mut sums = [vdupq_n_s16(0); 2];
    for (x, weights) in x[..WIDTH].iter().zip(const { &all_weights::<WIDTH>() }) {
        let weights = vreinterpretq_s8_u8(load_bytes(weights));
        let x = vdupq_n_s8(*x);
        sums[0] = vmlal_s8(sums[0], vget_low_s8(weights), vget_low_s8(x));
        sums[1] = vmlal_high_s8(sums[1], weights, x);
    }
    let high = [
        vqrdmulhq_n_s16(sums[0], INVERSE_BASE),
        vqrdmulhq_n_s16(sums[1], INVERSE_BASE),
    ];
    let low = [
        vmlsq_n_s16(sums[0], high[0], BASE),
        vmlsq_n_s16(sums[1], high[1], BASE),
    ];
    for (x, table) in [low, high].into_iter().zip(table) {
        store_bytes(vmovn_high_s16(vmovn_s16(x[0]), x[1]), table);
    }
}

/// All weights of each index, the sign left aside.
const fn all_weights<const WIDTH: usize>() -> [[u8; 16]; 3] {
    [
        weights_by_index::<WIDTH>(0),
        weights_by_index::<WIDTH>(1),
        weights_by_index::<WIDTH>(2),
    ]
}

/// For each block the sums of its eight lookups, low and high bytes, one per row.
///
/// Where a lookup is negated, its bytes are only inverted; the ones that are then missing are counted at the end.
#[inline]
#[target_feature(enable = "neon")]
fn look_up_block<const WIDTH: usize, const G: usize>(
    tables: &Tables,
    blocks: [&[u8]; G],
) -> [[Bytes; 2]; G] {
    let none = [vdupq_n_u8(0); 2];
    let mut sums = [[none; 2]; G];
    let mut signs = [none; G];
    if WIDTH == 3 {
        for g in 0..G {
            signs[g] = load_part(blocks[g], SIGNS);
        }
    }
    for i in 0..BLOCK_LOOKUPS / 2 {
        let mut indices = [[none; 2]; G];
        for g in 0..G {
            indices[g] = nibbles(load_part(blocks[g], i));
        }
        for j in [2 * i, 2 * i + 1] {
            let [low, high] = &tables[j];
            let table = [load_bytes(low), load_bytes(high)];
            for g in 0..G {
                for half in 0..2 {
                    let negative = vtstq_u8(signs[g][half], vdupq_n_u8(0x80 >> j));
                    for byte in 0..2 {
                        let mut found = vqtbl1q_u8(table[byte], indices[g][j % 2][half]);
                        if WIDTH == 3 {
                            found = veorq_u8(found, negative);
                        }
                        sums[g][byte][half] = vaddq_u8(sums[g][byte][half], found);
                    }
                }
            }
        }
    }
    if WIDTH == 3 {
        for (sums, signs) in sums.iter_mut().zip(signs) {
            let [low, high] = sums;
            for half in 0..2 {
                let ones = vcntq_u8(signs[half]);
                low[half] = vaddq_u8(low[half], ones);
                high[half] = vaddq_u8(high[half], ones);
            }
        }
    }
    sums
}

/// Adds `low + BASE·high`.
#[inline]
#[target_feature(enable = "neon")]
fn widen(wide: &mut Wide, [low, high]: [Bytes; 2]) {
    let base = vdupq_n_s8(BASE as i8);
    for half in 0..2 {
        let low = vreinterpretq_s8_u8(low[half]);
        let high = vreinterpretq_s8_u8(high[half]);
        let first = vaddw_s8(wide[2 * half], vget_low_s8(low));
        let second = vaddw_high_s8(wide[2 * half + 1], low);
        wide[2 * half] = vmlal_s8(first, vget_low_s8(high), vget_low_s8(base));
        wide[2 * half + 1] = vmlal_high_s8(second, high, base);
    }
}

/// Vector `i` of a block.
#[inline]
#[target_feature(enable = "neon")]
fn load_part(block: &[u8], i: usize) -> Bytes {
    let (halves, _) = part(block, i).as_chunks();
    [load_bytes(&halves[0]), load_bytes(&halves[1])]
}

/// The low and the high indices of 32 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles([a, b]: Bytes) -> [Bytes; 2] {
    let mask = vdupq_n_u8(15);
    [
        [vandq_u8(a, mask), vandq_u8(b, mask)],
        [vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b)],
    ]
}

/// Adds i16 sums to those of their rows.
#[inline]
#[target_feature(enable = "neon")]
fn add_rows(wide: Wide, sums: &mut Sums) {
    for (wide, sums) in wide.into_iter().zip(sums.as_chunks_mut::<8>().0) {
        let at = sums.as_mut_ptr();
        // SAFETY: unaligned loads of the 4 + 4 numbers of the array.
        let (low, high) = unsafe { (vld1q_s32(at), vld1q_s32(at.add(4))) };
        let low = vaddw_s16(low, vget_low_s16(wide));
        let high = vaddw_high_s16(high, wide);
        // SAFETY: unaligned stores to the same array.
        unsafe {
            vst1q_s32(at, low);
            vst1q_s32(at.add(4), high);
        }
    }
}

/// The codes 0, 1, 2 of a block, column by column.
#[inline]
#[target_feature(enable = "neon")]
fn unpack<const WIDTH: usize>(block: &[u8], out: &mut [PairCodes]) {
    let columns = out.as_flattened_mut();
    let signs = match WIDTH {
        3 => load_part(block, SIGNS),
        _ => [vdupq_n_u8(0); 2],
    };
    for (j, columns) in columns.chunks_exact_mut(WIDTH).enumerate() {
        let index = nibbles(load_part(block, j / 2))[j % 2];
        for (column, weights) in columns.iter_mut().zip(const { &all_weights::<WIDTH>() }) {
            let weights = load_bytes(weights);
            let (halves, _) = column.as_chunks_mut();
            for half in 0..2 {
                let weight = vqtbl1q_u8(weights, index[half]);
                let negative = vtstq_u8(signs[half], vdupq_n_u8(0x80 >> j));
                // -w is !w + 1, and the code one more than the weight.
                let code = vsubq_u8(veorq_u8(weight, negative), negative);
                let code = vaddq_u8(code, vdupq_n_u8(1));
                store_bytes(vreinterpretq_s8_u8(code), &mut halves[half]);
            }
        }
    }
}

/// Adds the products of up to `PAIRS` pairs of columns of 32 rows with those of `T` tokens.
#[inline]
#[target_feature(enable = "neon")]
fn tile<const T: usize>(codes: &[PairCodes], x: [&[[i8; 2]]; T], sums: &mut [Sums; T]) {
    let x = x.map(|x| &x[..codes.len()]);
    let mut wide = [zero_wide(); T];
    for (i, codes) in codes.iter().enumerate() {
        for column in 0..2 {
            let (halves, _) = codes[column].as_chunks();
            for half in 0..2 {
                let codes = vreinterpretq_s8_u8(load_bytes(&halves[half]));
                for t in 0..T {
                    let x = vdupq_n_s8(x[t][i][column]);
                    let wide = &mut wide[t];
                    wide[2 * half] = vmlal_s8(wide[2 * half], vget_low_s8(codes), vget_low_s8(x));
                    wide[2 * half + 1] = vmlal_high_s8(wide[2 * half + 1], codes, x);
                }
            }
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        add_rows(wide, sums);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_bytes(x: int8x16_t, out: &mut [u8; 16]) {
    // SAFETY: an unaligned store to the sixteen bytes of the array.
    unsafe { vst1q_s8(out.as_mut_ptr().cast(), x) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_every_sum() {
        if !super::super::detected(crate::Isa::Neon) {
            return println!("skipped: no NEON");
        }
        // SAFETY: the features were seen.
        let fill_2 = |x: &[i8], table: &mut Table| unsafe { fill_table::<2>(x, table) };
        // SAFETY: as above.
        let fill_3 = |x: &[i8], table: &mut Table| unsafe { fill_table::<3>(x, table) };
        check_tables(fill_2, fill_3);
    }
}
