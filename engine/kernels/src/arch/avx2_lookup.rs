//! TL1 and TL2 on AVX2. One or two tokens: sums of two or three activations in tables of sixteen, looked up for 32 rows at
//! once by `vpshufb`. More tokens: weights are unpacked once into pairs of columns and multiplied by `vpmaddubsw`.
//!
//! A sum `v` of a table stands in two bytes, `v = low + 31·high` with |low| ≤ 15 and, |v| being at most 384, |high| ≤ 12: so
//! eight of them add up in a byte and nothing is rounded. A negative sign of TL2 negates both bytes.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx2::{load_bytes, load16};
use super::finish;
use crate::lookup::{self, BLOCK_LOOKUPS, GROUP_ROWS, GroupedRows};
use crate::{QuantRow, QuantRows};

/// `low` of sixteen sums, then `high`.
type Table = [[u8; 16]; 2];
type Tables = [Table; BLOCK_LOOKUPS];
/// One number per row of a group.
type Sums = [i32; GROUP_ROWS];

const BASE: i16 = 31;
/// Up to so many tokens, each looks its sums up.
const FEW: usize = 2;
/// Blocks whose tables are made at a time: 112 KB on the stack, in the second-level cache. All columns of 2B-4T, so that
/// weights are read in one direction.
const TABLED: usize = 448;
/// Groups that share these tables.
const PANEL_GROUPS: usize = 64;
/// How far ahead weights are asked for, in each of two groups.
const AHEAD_BYTES: usize = 4 << 10;
/// Blocks that an i16 lane sums without overflow: 8 · 384 · 10 = 30,720.
const CHUNK: usize = 10;

/// Tokens whose sums wait while a group of unpacked rows meets them all.
const PANEL_TOKENS: usize = 96;
/// Tokens of a tile: eight sums, two codes, one activation of sixteen registers.
const TOKENS: usize = 4;
/// Pairs of columns that an i16 lane sums without overflow: 2 · 2 · 128 · 60 = 30,720. Whole blocks of TL2.
const PAIRS: usize = 60;
/// Codes of two columns of 32 rows, rows in the order of `add_rows`.
type PairCodes = [[u8; 32]; 2];

/// `out[t][r]` for the wanted rows of TL1 (`WIDTH` 2) or TL2 (3) and each token `t`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_lookup<const WIDTH: usize>(
    rows: GroupedRows<'_>,
    scale: f32,
    x: &QuantRows,
    out: &mut [&mut [f32]],
) {
    if x.len() <= FEW {
        for (t, out) in out.iter_mut().enumerate() {
            by_tables::<WIDTH>(rows, scale, x.row(t), out);
        }
        return;
    }
    for first in (0..x.len()).step_by(PANEL_TOKENS) {
        let out = &mut out[first..x.len().min(first + PANEL_TOKENS)];
        by_products::<WIDTH>(rows, scale, x, first, out);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn by_tables<const WIDTH: usize>(
    rows: GroupedRows<'_>,
    scale: f32,
    x: QuantRow<'_>,
    out: &mut [f32],
) {
    let cols = x.values.len();
    let group_bytes = lookup::group_bytes(WIDTH, cols);
    let mut tables = [MaybeUninit::<Tables>::uninit(); TABLED];
    let mut sums = [[0; GROUP_ROWS]; PANEL_GROUPS];
    // Row of `out` that the next group begins with, `skip` rows too early.
    let mut row = 0;
    for groups in rows.groups.chunks(PANEL_GROUPS * group_bytes) {
        let sums = &mut sums[..groups.len() / group_bytes];
        sums.fill([0; GROUP_ROWS]);
        for (i, x) in x
            .values
            .chunks(TABLED * lookup::block_cols(WIDTH))
            .enumerate()
        {
            let tables = fill_tables::<WIDTH>(x, &mut tables);
            let start = i * TABLED * lookup::block_bytes(WIDTH);
            let run = start..start + tables.len() * lookup::block_bytes(WIDTH);
            let run_of = |group| &groups[group * group_bytes..][run.clone()];
            let (pairs, last) = sums.as_chunks_mut::<2>();
            let n_pairs = pairs.len();
            for (g, sums) in pairs.iter_mut().enumerate() {
                look_up::<WIDTH, 2>(
                    tables,
                    [run_of(2 * g), run_of(2 * g + 1)],
                    group_bytes,
                    sums,
                );
            }
            if let [sums] = last {
                look_up::<WIDTH, 1>(
                    tables,
                    [run_of(2 * n_pairs)],
                    group_bytes,
                    std::array::from_mut(sums),
                );
            }
        }
        for sums in sums {
            store(sums, row, rows.skip, out, |sum| {
                finish(sum, 0, x.scale, scale)
            });
            row += GROUP_ROWS;
        }
    }
}

/// The sums of a group whose first row is `row - skip` of `out`, as far as they are wanted there.
#[inline(always)]
fn store(sums: &Sums, row: usize, skip: usize, out: &mut [f32], finish: impl Fn(i32) -> f32) {
    let first = skip.saturating_sub(row).min(GROUP_ROWS);
    let start = (row + first).saturating_sub(skip);
    let out = &mut out[start..];
    for (sum, out) in sums[first..].iter().zip(out) {
        *out = finish(*sum);
    }
}

/// Tables for all columns of `x`, eight per block; zeros stand in for columns beyond it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fill_tables<'a, const WIDTH: usize>(
    x: &[i8],
    tables: &'a mut [MaybeUninit<Tables>; TABLED],
) -> &'a [Tables] {
    let n_blocks = x.len().div_ceil(lookup::block_cols(WIDTH));
    let tables = &mut tables[..n_blocks];
    let mut blocks = x.chunks_exact(lookup::block_cols(WIDTH));
    for (x, tables) in (&mut blocks).zip(&mut *tables) {
        tables.write(block_tables::<WIDTH>(x));
    }
    let rest = blocks.remainder();
    if let (Some(last), false) = (tables.last_mut(), rest.is_empty()) {
        let mut padded = [0; 3 * BLOCK_LOOKUPS];
        padded[..rest.len()].copy_from_slice(rest);
        last.write(block_tables::<WIDTH>(&padded));
    }
    // SAFETY: `n_blocks` counts the whole blocks of `x` and the rest if there is one; each table was written above.
    unsafe { std::slice::from_raw_parts(tables.as_ptr().cast(), n_blocks) }
}

/// The tables of a block's lookups.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn block_tables<const WIDTH: usize>(x: &[i8]) -> Tables {
    let mut tables = [[[0; 16]; 2]; BLOCK_LOOKUPS];
    for (x, table) in x.chunks_exact(WIDTH).zip(&mut tables) {
        fill_table::<WIDTH>(x, table);
    }
    tables
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

/// Weight `i` of each index.
const fn weights_by_index<const WIDTH: usize>(i: usize) -> [u8; 16] {
    let mut weights = [0; 16];
    let mut index = 0;
    while index < 16 {
        weights[index] = lookup::weight_of::<WIDTH>(index as u8, i) as u8;
        index += 1;
    }
    weights
}

/// The sums of `WIDTH` activations that each index stands for.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fill_table<const WIDTH: usize>(x: &[i8], table: &mut Table) {
    let Indexed { pairs, third } = const { &indexed::<WIDTH>() };
    let pair = _mm256_set1_epi16(i16::from_le_bytes([x[0] as u8, x[1] as u8]));
    let by_code = _mm256_maddubs_epi16(load_bytes(pairs), pair);
    let once = _mm256_maddubs_epi16(_mm256_set1_epi8(1), pair);
    let mut sums = _mm256_sub_epi16(by_code, once);
    if WIDTH == 3 {
        let x = _mm256_set1_epi16(i16::from(x[2]));
        sums = _mm256_add_epi16(sums, _mm256_and_si256(x, load_words(third)));
    }
    // 1057 / 2^15 is 1/31 within 4e-5 of it: near enough for every sum, as a test says.
    let high = _mm256_mulhrs_epi16(sums, _mm256_set1_epi16(1057));
    let low = _mm256_sub_epi16(sums, _mm256_mullo_epi16(high, _mm256_set1_epi16(BASE)));
    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(low, high));
    // SAFETY: an unaligned store to the 32 bytes of the array.
    unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), both) };
}

/// Adds to `sums[g]` what `groups[g]`, blocks of a group, look up; one load of a table serves all groups. The groups that
/// come next, `G` groups further on, are asked for towards the end.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up<const WIDTH: usize, const G: usize>(
    tables: &[Tables],
    groups: [&[u8]; G],
    group_bytes: usize,
    sums: &mut [Sums; G],
) {
    let block_bytes = lookup::block_bytes(WIDTH);
    for (chunk, tables) in tables.chunks(CHUNK).enumerate() {
        let mut wide = [[_mm256_setzero_si256(); 2]; G];
        for (b, tables) in (chunk * CHUNK..).zip(tables) {
            let blocks = groups.map(|group| &group[b * block_bytes..][..block_bytes]);
            let ahead = match b * block_bytes + AHEAD_BYTES < groups[0].len() {
                true => AHEAD_BYTES,
                false => AHEAD_BYTES + G * group_bytes - groups[0].len(),
            };
            for block in blocks {
                for line in block.chunks(64) {
                    prefetch(line, ahead);
                }
            }
            for (wide, [low, high]) in wide
                .iter_mut()
                .zip(look_up_block::<WIDTH, G>(tables, blocks))
            {
                let weigh = _mm256_set1_epi16(BASE << 8 | 1);
                let halves = [
                    _mm256_unpacklo_epi8(low, high),
                    _mm256_unpackhi_epi8(low, high),
                ];
                for (wide, half) in wide.iter_mut().zip(halves) {
                    *wide = _mm256_add_epi16(*wide, _mm256_maddubs_epi16(weigh, half));
                }
            }
        }
        for (sums, wide) in sums.iter_mut().zip(wide) {
            add_rows(wide, sums);
        }
    }
}

/// For each block the sums of its eight lookups, low and high bytes, one per row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn look_up_block<const WIDTH: usize, const G: usize>(
    tables: &Tables,
    blocks: [&[u8]; G],
) -> [[__m256i; 2]; G] {
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
fn signs_of(block: &[u8]) -> __m256i {
    load_bytes(part(block, 4))
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

/// Vector `i` of a block.
#[inline(always)]
fn part(block: &[u8], i: usize) -> &[u8; 32] {
    &block.as_chunks().0[i]
}

/// Adds i16 sums to those of their rows: each lane of 128 bits holds eight rows in order, the first vector rows 0 to 7 and 16
/// to 23, as interleaving bytes leaves them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_rows(wide: [__m256i; 2], sums: &mut Sums) {
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

/// The tokens from `first` on, one per slice of `out`.
#[target_feature(enable = "avx2,fma,f16c")]
fn by_products<const WIDTH: usize>(
    rows: GroupedRows<'_>,
    scale: f32,
    x: &QuantRows,
    first: usize,
    out: &mut [&mut [f32]],
) {
    let block_bytes = lookup::block_bytes(WIDTH);
    let block_pairs = lookup::block_cols(WIDTH) / 2;
    let mut codes = [[[0; 32]; 2]; PAIRS];
    let mut sums = [[0; GROUP_ROWS]; PANEL_TOKENS];
    let sums = &mut sums[..out.len()];
    let groups = rows
        .groups
        .chunks_exact(lookup::group_bytes(WIDTH, x.cols()));
    for (group, row) in groups.zip((0..).step_by(GROUP_ROWS)) {
        sums.fill([0; GROUP_ROWS]);
        let chunks = group.chunks(PAIRS / block_pairs * block_bytes);
        for (chunk, start) in chunks.zip((0..).step_by(PAIRS / block_pairs * block_pairs)) {
            let blocks = chunk.chunks_exact(block_bytes);
            for (block, codes) in blocks.zip(codes.chunks_exact_mut(block_pairs)) {
                unpack::<WIDTH>(block, codes);
            }
            let end = (x.cols() / 2).min(start + chunk.len() / block_bytes * block_pairs);
            let codes = &codes[..end - start];
            let token = |t: usize| &x.row(first + t).values.as_chunks().0[start..end];
            let (fours, others) = sums.as_chunks_mut::<TOKENS>();
            let n_fours = TOKENS * fours.len();
            for (t, sums) in (0..).step_by(TOKENS).zip(fours) {
                tile(codes, std::array::from_fn(|i| token(t + i)), sums);
            }
            for (t, sums) in (n_fours..).zip(others) {
                tile(codes, [token(t)], std::array::from_mut(sums));
            }
        }
        for (t, (out, sums)) in out.iter_mut().zip(&*sums).enumerate() {
            let x = x.row(first + t);
            store(sums, row, rows.skip, out, |sum| {
                finish(sum, x.sum, x.scale, scale)
            });
        }
    }
}

/// The codes 0, 1, 2 of a block by pairs of columns.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<const WIDTH: usize>(block: &[u8], out: &mut [PairCodes]) {
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
fn tile<const T: usize>(codes: &[PairCodes], x: [&[[i8; 2]]; T], sums: &mut [Sums; T]) {
    let x = x.map(|x| &x[..codes.len()]);
    let mut wide = [[_mm256_setzero_si256(); 2]; T];
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
fn prefetch(here: &[u8], ahead: usize) {
    let there = here.as_ptr().wrapping_add(ahead);
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(there.cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs and some triples of activations, the extremes among them: every table entry is exact, and eight fit a byte.
    #[test]
    fn tables_hold_every_sum() {
        if !super::super::detected(crate::Isa::Avx2) {
            return println!("skipped: no AVX2");
        }
        for (a, b) in (-128..=127).flat_map(|a| (-128..=127).map(move |b| (a, b))) {
            check::<2>(&[a, b]);
            for c in [-128, -127, -65, -1, 0, 1, 30, 126, 127] {
                check::<3>(&[a, b, c]);
            }
        }
    }

    fn check<const WIDTH: usize>(x: &[i8]) {
        let mut table = [[0; 16]; 2];
        // SAFETY: the caller saw the features.
        unsafe { fill_table::<WIDTH>(x, &mut table) };
        for index in 0..[9, 14][WIDTH - 2] {
            let weights = (0..WIDTH).map(|i| lookup::weight_of::<WIDTH>(index, i));
            let expected: i16 = weights
                .zip(x)
                .map(|(w, x)| i16::from(w) * i16::from(*x))
                .sum();
            let [low, high] = table.map(|half| i16::from(half[usize::from(index)] as i8));
            assert_eq!(low + BASE * high, expected, "{x:?}, index {index}");
            assert!(low.abs() <= 15 && high.abs() <= 15, "{x:?}: {low}, {high}");
        }
    }
}
