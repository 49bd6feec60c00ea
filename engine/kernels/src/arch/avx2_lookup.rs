//! TL1 and TL2 on AVX2: tables by `vpshufb`, 32 rows at once; products by `vpmaddubsw` of pairs of columns.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx2::{load_bytes, load16};
use super::finish;
use super::grouped::*;
use crate::lookup::{self, BLOCK_LOOKUPS, GROUP_ROWS, GroupedRows};
use crate::{QuantRow, QuantRows};

/// Groups that share a load of a table.
const GROUPS: usize = 2;
/// A byte per row of a group.
type Bytes = __m256i;
/// An i16 per row: rows 0 to 7 and 16 to 23, then the others, as interleaving bytes leaves them.
type Wide = [__m256i; 2];

grouped_matmul!(#[target_feature(enable = "avx2,fma,f16c")]);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn zero_wide() -> Wide {
    [_mm256_setzero_si256(); 2]
}

/// What the sixteen indices stand for.
struct Indexed {
    /// The first two weights of each, as codes 0, 1, 2.
    pairs: [u8; 32],
    /// -1 where there is a third weight, which then is 1, the sign being left aside.
    third: [i16; 16],
}

const fn indexed<const WIDTH: usize>() -> Indexed {
    let mut all = Indexed {
        pairs: [0; 32],
        third: [0; 16],
    };
    let mut index = 0;
    while index < 16 {
        all.pairs[2 * index] = (lookup::weight_of::<WIDTH>(index as u8, 0) + 1) as u8;
        all.pairs[2 * index + 1] = (lookup::weight_of::<WIDTH>(index as u8, 1) + 1) as u8;
        if WIDTH == 3 {
            all.third[index] = -(lookup::weight_of::<WIDTH>(index as u8, 2) as i16);
        }
        index += 1;
    }
    all
}

/// The sums of `WIDTH` activations that each index stands for.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn index_sums<const WIDTH: usize>(x: &[i8]) -> __m256i {
    let Indexed { pairs, third } = const { &indexed::<WIDTH>() };
    let pair = _mm256_set1_epi16(i16::from_le_bytes([x[0] as u8, x[1] as u8]));
    let by_code = _mm256_maddubs_epi16(load_bytes(pairs), pair);
    let once = _mm256_maddubs_epi16(_mm256_set1_epi8(1), pair);
    let sums = _mm256_sub_epi16(by_code, once);
    if WIDTH == 2 {
        return sums;
    }
    let x = _mm256_set1_epi16(i16::from(x[2]));
    _mm256_add_epi16(sums, _mm256_and_si256(x, load_words(third)))
}

/// The same in two bytes each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fill_table<const WIDTH: usize>(x: &[i8], table: &mut Table) {
    let sums = index_sums::<WIDTH>(x);
    let high = _mm256_mulhrs_epi16(sums, _mm256_set1_epi16(INVERSE_BASE));
    let low = _mm256_sub_epi16(sums, _mm256_mullo_epi16(high, _mm256_set1_epi16(BASE)));
    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high));
    // SAFETY: an unaligned store to the 32 bytes of the array.
    unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), both) };
}

/// Adds `low + BASE·high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(wide: &mut Wide, [low, high]: [Bytes; 2]) {
    let weigh = _mm256_set1_epi16(BASE << 8 | 1);
    let halves = [
        _mm256_unpacklo_epi8(low, high),
        _mm256_unpackhi_epi8(low, high),
    ];
    for (wide, half) in wide.iter_mut().zip(halves) {
        *wide = _mm256_add_epi16(*wide, _mm256_maddubs_epi16(weigh, half));
    }
}

/// For each block the sums of its eight lookups, low and high bytes, one per row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up_block<const WIDTH: usize, const G: usize>(
    tables: &Tables,
    blocks: [&[u8]; G],
) -> [[Bytes; 2]; G] {
    let mut sums = [[_mm256_setzero_si256(); 2]; G];
    let mut signs = [_mm256_setzero_si256(); G];
    if WIDTH == 3 {
        for g in 0..G {
            signs[g] = first_signs(signs_of(blocks[g]));
        }
    }
    for i in 0..BLOCK_LOOKUPS / 2 {
        let mut indices = [[_mm256_setzero_si256(); 2]; G];
        for g in 0..G {
            indices[g] = nibbles(load_bytes(part(blocks[g], i)));
        }
        for j in [2 * i, 2 * i + 1] {
            let table = tables[j]
                .each_ref()
                .map(|t| _mm256_broadcastsi128_si256(load16(t)));
            for g in 0..G {
                if WIDTH == 3 && j == BLOCK_LOOKUPS - 1 {
                    signs[g] = last_signs(signs_of(blocks[g]));
                }
                for (sum, table) in sums[g].iter_mut().zip(table) {
                    let mut found = _mm256_shuffle_epi8(table, indices[g][j % 2]);
                    if WIDTH == 3 {
                        found = _mm256_sign_epi8(found, signs[g]);
                    }
                    *sum = _mm256_add_epi8(*sum, found);
                }
                signs[g] = _mm256_add_epi8(signs[g], signs[g]);
            }
        }
    }
    sums
}

/// The signs of TL2, which follow four vectors of indices.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn signs_of(block: &[u8]) -> __m256i {
    load_bytes(part(block, SIGNS))
}

/// Negative bytes where the first lookup is negated, positive ones elsewhere; so, too, for the next six after doubling the
/// bytes each time, since the lowest bit never leaves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn first_signs(signs: __m256i) -> __m256i {
    _mm256_or_si256(signs, _mm256_set1_epi8(1))
}

/// The same for the eighth lookup.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn last_signs(signs: __m256i) -> __m256i {
    first_signs(_mm256_slli_epi16::<7>(signs))
}

/// The low and the high indices of 32 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(bytes: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    let high = _mm256_srli_epi16::<4>(bytes);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(high, mask)]
}

/// Adds i16 sums to those of their rows: each lane of 128 bits holds eight rows in order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_rows(wide: Wide, sums: &mut Sums) {
    let [a, b] = wide;
    let eights = [
        _mm256_castsi256_si128(a),
        _mm256_castsi256_si128(b),
        _mm256_extracti128_si256::<1>(a),
        _mm256_extracti128_si256::<1>(b),
    ];
    for (eight, sums) in eights.into_iter().zip(sums.as_chunks_mut::<8>().0) {
        let at = sums.as_mut_ptr().cast();
        // SAFETY: an unaligned load of the eight numbers of the array.
        let sum = _mm256_add_epi32(_mm256_cvtepi16_epi32(eight), unsafe {
            _mm256_loadu_si256(at)
        });
        // SAFETY: an unaligned store to the same array.
        unsafe { _mm256_storeu_si256(at, sum) };
    }
}

/// The codes 0, 1, 2 of a block by pairs of columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack<const WIDTH: usize>(block: &[u8], out: &mut [PairCodes]) {
    let mut columns = [_mm256_setzero_si256(); 3 * BLOCK_LOOKUPS];
    let mut signs = _mm256_setzero_si256();
    if WIDTH == 3 {
        signs = first_signs(signs_of(block));
    }
    for (j, columns) in columns
        .chunks_exact_mut(WIDTH)
        .take(BLOCK_LOOKUPS)
        .enumerate()
    {
        if WIDTH == 3 && j == BLOCK_LOOKUPS - 1 {
            signs = last_signs(signs_of(block));
        }
        let index = nibbles(load_bytes(part(block, j / 2)))[j % 2];
        let weights = const {
            [
                weights_by_index::<WIDTH>(0),
                weights_by_index::<WIDTH>(1),
                weights_by_index::<WIDTH>(2),
            ]
        };
        for (column, weights) in columns.iter_mut().zip(&weights) {
            let mut found =
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load16(weights)), index);
            if WIDTH == 3 {
                found = _mm256_sign_epi8(found, signs);
            }
            *column = _mm256_add_epi8(found, _mm256_set1_epi8(1));
        }
        signs = _mm256_add_epi8(signs, signs);
    }
    for (columns, [a, b]) in columns.as_chunks::<2>().0.iter().zip(out) {
        let [even, odd] = *columns;
        for (halves, out) in [
            (_mm256_unpacklo_epi8(even, odd), a),
            (_mm256_unpackhi_epi8(even, odd), b),
        ] {
            // SAFETY: an unaligned store to the 32 bytes of the array.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), halves) };
        }
    }
}

/// Adds the products of up to `PAIRS` pairs of columns of 32 rows with those of `T` tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile<const T: usize>(codes: &[PairCodes], x: [&[[i8; 2]]; T], sums: &mut [Sums; T]) {
    let x = x.map(|x| &x[..codes.len()]);
    let mut wide = [zero_wide(); T];
    for (i, codes) in codes.iter().enumerate() {
        let codes = codes.each_ref().map(|codes| load_bytes(codes));
        for t in 0..T {
            let pair = _mm256_set1_epi16(i16::from_le_bytes(x[t][i].map(|x| x as u8)));
            for half in 0..2 {
                let products = _mm256_maddubs_epi16(codes[half], pair);
                wide[t][half] = _mm256_add_epi16(wide[t][half], products);
            }
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        add_rows(wide, sums);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_words(x: &[i16; 16]) -> __m256i {
    // SAFETY: an unaligned load of the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// Asks for what lies `ahead` bytes further on. The intrinsic needs `unsafe` in older compilers only.
#[inline]
#[allow(unused_unsafe)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_at(here: &[u8], ahead: usize) {
    let there = here.as_ptr().wrapping_add(ahead);
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(there.cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_every_sum() {
        if !super::super::detected(crate::Isa::Avx2) {
            return println!("skipped: no AVX2");
        }
        // SAFETY: the features were seen.
        let fill_2 = |x: &[i8], table: &mut Table| unsafe { fill_table::<2>(x, table) };
        // SAFETY: as above.
        let fill_3 = |x: &[i8], table: &mut Table| unsafe { fill_table::<3>(x, table) };
        check_tables(fill_2, fill_3);
    }
}
