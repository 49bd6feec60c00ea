//! TL1 and TL2 on AVX-512: tables of sixteen i16 by `vpermw`, 32 rows at once. Many tokens go by AVX2's products.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx2::load_bytes;
use super::avx2_lookup::{index_sums, prefetch_at, signs_of, tile, unpack};
use super::finish;
use super::grouped::*;
use crate::lookup::{self, BLOCK_LOOKUPS, GROUP_ROWS, GroupedRows};
use crate::{QuantRow, QuantRows};

/// Groups that share a load of a table: with two, weights come from memory more slowly.
const GROUPS: usize = 1;
/// An i16 per row of a group.
type Wide = __m512i;

grouped_matmul!(#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]);

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn zero_wide() -> Wide {
    _mm512_setzero_si512()
}

/// The sums of `WIDTH` activations that each index stands for, as i16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn fill_table<const WIDTH: usize>(x: &[i8], table: &mut Table) {
    // SAFETY: an unaligned store to the 32 bytes of the array.
    unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), index_sums::<WIDTH>(x)) };
}

/// For each block the sums of its eight lookups without their signs, and of those that a sign negates, modulo 2^16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn look_up_block<const WIDTH: usize, const G: usize>(
    tables: &Tables,
    blocks: [&[u8]; G],
) -> [[Wide; 2]; G] {
    let mut sums = [[zero_wide(); 2]; G];
    for i in 0..BLOCK_LOOKUPS / 2 {
        for g in 0..G {
            let [all, negated] = &mut sums[g];
            let bytes = _mm512_cvtepu8_epi16(load_bytes(part(blocks[g], i)));
            // Of an index five bits count; the fifth, of the next one, chooses between equal halves of the table.
            let indices = [bytes, _mm512_srli_epi16::<4>(bytes)];
            for (j, index) in (2 * i..).zip(indices) {
                let found = _mm512_permutexvar_epi16(index, load_table(&tables[j]));
                *all = _mm512_add_epi16(*all, found);
                if WIDTH == 3 {
                    let sign = _mm256_set1_epi8((0x80_u8 >> j) as i8);
                    let is_negated = _mm256_test_epi8_mask(signs_of(blocks[g]), sign);
                    *negated = _mm512_mask_add_epi16(*negated, is_negated, *negated, found);
                }
            }
        }
    }
    sums
}

/// Sixteen sums, twice.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn load_table(table: &Table) -> __m512i {
    // SAFETY: an unaligned load of the 32 bytes of the array.
    _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(table.as_ptr().cast()) })
}

/// Adds sums of a block, negated where that was said.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn widen(wide: &mut Wide, [all, negated]: [Wide; 2]) {
    let twice = _mm512_add_epi16(negated, negated);
    *wide = _mm512_add_epi16(*wide, _mm512_sub_epi16(all, twice));
}

/// Adds i16 sums to those of their rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_rows(wide: Wide, sums: &mut Sums) {
    let halves = [
        _mm512_castsi512_si256(wide),
        _mm512_extracti64x4_epi64::<1>(wide),
    ];
    for (half, sums) in halves.into_iter().zip(sums.as_chunks_mut::<16>().0) {
        let at = sums.as_mut_ptr().cast();
        // SAFETY: an unaligned load of the sixteen numbers of the array.
        let sum = _mm512_add_epi32(_mm512_cvtepi16_epi32(half), unsafe {
            _mm512_loadu_si512(at)
        });
        // SAFETY: an unaligned store to the same array.
        unsafe { _mm512_storeu_si512(at, sum) };
    }
}
