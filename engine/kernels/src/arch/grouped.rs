//! The walk over groups of rows and tokens for instruction sets that look up 32 rows at once: TL1 and TL2.
//!
//! One or two tokens: sums of two or three activations in tables of sixteen, looked up for a group's 32 rows at once. More
//! tokens: weights are unpacked once into columns and multiplied.
//!
//! A sum `v` of a table, where instructions look bytes up, stands in two of them, `v = low + 31·high` with |low| ≤ 15 and, |v| being
//! at most 384, |high| ≤ 12: so eight of them add up in a byte and nothing is rounded. A negative sign of TL2 negates both bytes.
//!
//! `grouped_matmul!` expects at the place of use, all with the given attributes: `GROUPS`, how many share a load of a table;
//! `Wide`, an i16 per row, with `zero_wide` and `add_rows(wide, sums)`; `fill_table(x, table)`, the sums of `WIDTH` activations
//! that each index stands for; `look_up_block(tables, blocks)`, for each block the sums of its eight lookups (low and high bytes,
//! or all sums and those to be negated); `widen(wide, found)`, which adds them; `unpack(block, columns)`, the codes 0, 1, 2 of a block by
//! pairs of columns; `tile(columns, x, sums)`, which adds the products of up to `PAIRS` of them with those of `T` tokens; and
//! `prefetch_at(bytes, ahead)`.

use crate::lookup::{self, BLOCK_LOOKUPS, GROUP_ROWS};

/// `low` of sixteen sums, then `high`; or sixteen sums as i16.
pub(super) type Table = [[u8; 16]; 2];
/// Those of a block's lookups.
pub(super) type Tables = [Table; BLOCK_LOOKUPS];
/// One number per row of a group.
pub(super) type Sums = [i32; GROUP_ROWS];
/// Codes of two columns of 32 rows, in the order that the instruction set's `tile` likes.
pub(super) type PairCodes = [[u8; 32]; 2];

/// What `high` counts in.
pub(super) const BASE: i16 = 31;
/// 1057 / 2^15 is 1/31 within 4e-5 of it: near enough to round every sum rightly, as a test says.
pub(super) const INVERSE_BASE: i16 = 1057;
/// Up to so many tokens, each looks its sums up.
pub(super) const FEW: usize = 2;
/// Blocks whose tables are made at a time: 112 KB on the stack, in the second-level cache. All columns of 2B-4T, so that
/// weights are read in one direction.
pub(super) const TABLED: usize = 448;
/// Groups that share these tables.
pub(super) const PANEL_GROUPS: usize = 64;
/// How far ahead weights are asked for, in all groups together.
pub(super) const AHEAD_BYTES: usize = 8 << 10;
/// Blocks that an i16 lane sums without overflow: 8 · 384 · 10 = 30,720.
pub(super) const CHUNK: usize = 10;
/// Tokens whose sums wait while a group of unpacked rows meets them all.
pub(super) const PANEL_TOKENS: usize = 96;
/// Tokens of a tile: eight sums, two codes, one activation of AVX2's sixteen registers; sixteen sums, four codes, one
/// activation of NEON's 32.
pub(super) const TILE_TOKENS: usize = 4;
/// Pairs of columns that an i16 lane sums without overflow: 2 · 2 · 128 · 60 = 30,720. Whole blocks of TL2.
pub(super) const PAIRS: usize = 60;

/// The sums of a group whose first row is `row - skip` of `out`, as far as they are wanted there.
#[inline(always)]
pub(super) fn store(
    sums: &Sums,
    row: usize,
    skip: usize,
    out: &mut [f32],
    finish: impl Fn(i32) -> f32,
) {
    let first = skip.saturating_sub(row).min(GROUP_ROWS);
    let start = (row + first).saturating_sub(skip);
    let out = &mut out[start..];
    for (sum, out) in sums[first..].iter().zip(out) {
        *out = finish(*sum);
    }
}

/// Weight `i` of each index, the sign left aside.
pub(super) const fn weights_by_index<const WIDTH: usize>(i: usize) -> [u8; 16] {
    let mut weights = [0; 16];
    let mut index = 0;
    while index < 16 {
        weights[index] = lookup::weight_of::<WIDTH>(index as u8, i) as u8;
        index += 1;
    }
    weights
}

/// Vector `i` of a block; in TL2 the signs are the fifth.
#[inline(always)]
pub(super) fn part(block: &[u8], i: usize) -> &[u8; GROUP_ROWS] {
    &block.as_chunks().0[i]
}

/// Which vector of a block of TL2 holds the signs.
pub(super) const SIGNS: usize = BLOCK_LOOKUPS / 2;

macro_rules! grouped_matmul {
    ($(#[$isa:meta])*) => {
        /// `out[t][r]` for the wanted rows of TL1 (`WIDTH` 2) or TL2 (3) and each token `t`.
        $(#[$isa])*
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

        $(#[$isa])*
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
                let panels = x.values.chunks(TABLED * lookup::block_cols(WIDTH));
                for (i, x) in panels.enumerate() {
                    let tables = fill_tables::<WIDTH>(x, &mut tables);
                    let start = i * TABLED * lookup::block_bytes(WIDTH);
                    let run = start..start + tables.len() * lookup::block_bytes(WIDTH);
                    let run_of = |group| &groups[group * group_bytes..][run.clone()];
                    let (whole, others) = sums.as_chunks_mut::<GROUPS>();
                    let n_whole = GROUPS * whole.len();
                    for (first, sums) in (0..).step_by(GROUPS).zip(whole) {
                        let mut runs: [&[u8]; GROUPS] = [&[]; GROUPS];
                        for (g, run) in (first..).zip(&mut runs) {
                            *run = run_of(g);
                        }
                        look_up::<WIDTH, GROUPS>(tables, runs, group_bytes, sums);
                    }
                    for (g, sums) in (n_whole..).zip(others) {
                        let sums = std::array::from_mut(sums);
                        look_up::<WIDTH, 1>(tables, [run_of(g)], group_bytes, sums);
                    }
                }
                for sums in sums {
                    store(sums, row, rows.skip, out, |sum| finish(sum, 0, x.scale, scale));
                    row += GROUP_ROWS;
                }
            }
        }

        /// Tables for all columns of `x`, eight per block; zeros stand in for columns beyond it.
        #[inline]
        $(#[$isa])*
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
        $(#[$isa])*
        fn block_tables<const WIDTH: usize>(x: &[i8]) -> Tables {
            let mut tables = [[[0; 16]; 2]; BLOCK_LOOKUPS];
            for (x, table) in x.chunks_exact(WIDTH).zip(&mut tables) {
                fill_table::<WIDTH>(x, table);
            }
            tables
        }

        /// Adds to `sums[g]` what `groups[g]`, blocks of a group, look up; one load of a table serves all groups. The groups
        /// that come next, `G` groups further on, are asked for towards the end.
        #[inline]
        $(#[$isa])*
        fn look_up<const WIDTH: usize, const G: usize>(
            tables: &[Tables],
            groups: [&[u8]; G],
            group_bytes: usize,
            sums: &mut [Sums; G],
        ) {
            let block_bytes = lookup::block_bytes(WIDTH);
            for (chunk, tables) in tables.chunks(CHUNK).enumerate() {
                let mut wide = [zero_wide(); G];
                for (b, tables) in (chunk * CHUNK..).zip(tables) {
                    // By a loop: closures handed to functions without these features are not inlined.
                    let mut blocks: [&[u8]; G] = [&[]; G];
                    for (block, group) in blocks.iter_mut().zip(groups) {
                        *block = &group[b * block_bytes..][..block_bytes];
                    }
                    let ahead = AHEAD_BYTES / GROUPS;
                    let ahead = match b * block_bytes + ahead < groups[0].len() {
                        true => ahead,
                        false => ahead + G * group_bytes - groups[0].len(),
                    };
                    for block in blocks {
                        for line in block.chunks(64) {
                            prefetch_at(line, ahead);
                        }
                    }
                    let found = look_up_block::<WIDTH, G>(tables, blocks);
                    for (wide, found) in wide.iter_mut().zip(found) {
                        widen(wide, found);
                    }
                }
                for (sums, wide) in sums.iter_mut().zip(wide) {
                    add_rows(wide, sums);
                }
            }
        }

        /// The tokens from `first` on, one per slice of `out`.
        $(#[$isa])*
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
                    let (fours, others) = sums.as_chunks_mut::<TILE_TOKENS>();
                    let n_fours = TILE_TOKENS * fours.len();
                    for (t, sums) in (0..).step_by(TILE_TOKENS).zip(fours) {
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
    };
}

/// Fills tables for all pairs and some triples of activations, the extremes among them: every entry is exact, and eight fit
/// a byte.
#[cfg(test)]
pub(super) fn check_tables(fill_2: impl Fn(&[i8], &mut Table), fill_3: impl Fn(&[i8], &mut Table)) {
    for (a, b) in (-128..=127).flat_map(|a| (-128..=127).map(move |b| (a, b))) {
        check_table::<2>(&[a, b], &fill_2);
        for c in [-128, -127, -65, -1, 0, 1, 30, 126, 127] {
            check_table::<3>(&[a, b, c], &fill_3);
        }
    }
}

#[cfg(test)]
fn check_table<const WIDTH: usize>(x: &[i8], fill: impl Fn(&[i8], &mut Table)) {
    let mut table = [[0; 16]; 2];
    fill(x, &mut table);
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
