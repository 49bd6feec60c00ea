//! I2_S with many tokens by AVX2: a byte of codes stands for a sum of four activations, which is looked up, not computed.
//!
//! Four columns have 81 sums with weights -1, 0 and +1. For sixteen tokens at a time these are made once, and hundreds of
//! rows add up what their bytes stand for: one load and one `vpaddw` do 64 multiply-adds, where `vpmaddubsw` and `vpaddw` do 32.
//! The method of the four Russians (Arlazarov, Dinic, Kronrod and Faradžev, 1970) with three digits in place of two.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::load_bytes;
use super::{PREFETCH_BYTES, finish, prefetch_line};
use crate::QuantRows;
use crate::ternary::{BLOCK_BYTES, BLOCK_COLS};

/// Tokens of a tile: i16 lanes of a register.
const TOKENS: usize = 16;
/// Sums of four columns.
const SUMS: usize = 81;
/// Bytes of a row whose tables lie in the first-level cache together, 20 KB.
const PASS: usize = 8;
/// Bytes of a row, a cache line, that i16 lanes sum without overflow: 64 · 4 · 127 = 32,512.
const CHUNK: usize = 64;
/// Rows that share tables.
const ROWS: usize = 640;
/// Tiles whose sums wait while chunks of rows meet them all.
const TILES: usize = 8;
/// Fewer rows don't pay for tables.
const ROWS_FROM: usize = 128;
/// Neither do fewer tokens,
const TOKENS_FROM: usize = 16;
/// nor fewer of them behind whole tiles.
const REST_FROM: usize = 10;

type Lanes = [i16; TOKENS];

/// All that stays near while a block of rows meets tokens.
#[repr(align(64))]
struct Fours {
    /// For each byte of a pass the sums that it can stand for: weights of the first column, the highest bits, count 27. The last
    /// table is never filled: it is there for bytes of a mapped file that change after they were looked through.
    tables: [[Lanes; SUMS]; PASS + 1],
    /// Where in `tables`, in bytes, the sum of each byte of a chunk lies.
    places: [[[u16; PASS]; ROWS]; CHUNK / PASS],
    /// Sums of a tile over a chunk.
    near: [Lanes; ROWS],
    sums: [[[i32; TOKENS]; ROWS]; TILES],
}

/// Whether tables pay for these tokens and rows.
pub(super) fn pays(x: &QuantRows, out: &[&mut [f32]]) -> bool {
    x.len() >= TOKENS_FROM && out[0].len() >= ROWS_FROM
}

/// `out[t][r]` for each row `r` of `codes` and the tokens that tables pay for; says how many these are, all before the others.
/// `in_registers(codes, tokens, r)` is to do the same for rows, the first of them row `r`, and tokens that tables can't hold:
/// with the code 3, or -128 among the activations.
///
/// Never inlined: its half a megabyte of stack is touched at each call.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_i2_s(
    codes: &[u8],
    scale: f32,
    x: &QuantRows,
    out: &mut [&mut [f32]],
    mut in_registers: impl FnMut(&[u8], Range<usize>, usize, &mut [&mut [f32]]),
) -> usize {
    let row_bytes = x.cols() / 4;
    let n_rows = out[0].len();
    let n_tokens = match x.len() % TOKENS {
        rest if rest < REST_FROM => x.len() - rest,
        _ => x.len(),
    };
    let block_rows = n_rows.div_ceil(n_rows.div_ceil(ROWS));
    let mut fours = Fours {
        tables: [[[0; TOKENS]; SUMS]; PASS + 1],
        places: [[[0; PASS]; ROWS]; CHUNK / PASS],
        near: [[0; TOKENS]; ROWS],
        sums: [[[0; TOKENS]; ROWS]; TILES],
    };
    let blocks = codes.chunks(block_rows * row_bytes);
    for (codes, r) in blocks.zip((0..).step_by(block_rows)) {
        for first in (0..n_tokens).step_by(TILES * TOKENS) {
            let tokens = first..n_tokens.min(first + TILES * TOKENS);
            match fours.sum(codes, x, tokens.clone()) {
                true => fours.store(codes.len() / row_bytes, scale, x, tokens, r, out),
                false => in_registers(codes, tokens, r, out),
            }
        }
    }
    n_tokens
}

impl Fours {
    /// Sums of products for each row and token; `false` when there are values that tables can't hold.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sum(&mut self, codes: &[u8], x: &QuantRows, tokens: Range<usize>) -> bool {
        let row_bytes = x.cols() / 4;
        let n_rows = codes.len() / row_bytes;
        if has_code_3(codes) {
            return false;
        }
        for t in tokens.clone() {
            if x.row(t).values.contains(&i8::MIN) {
                return false;
            }
        }
        let tiles = tokens.clone().step_by(TOKENS);
        for sums in &mut self.sums[..tiles.len()] {
            sums[..n_rows].fill([0; TOKENS]);
        }
        for start in (0..row_bytes).step_by(CHUNK) {
            let chunk = start..row_bytes.min(start + CHUNK);
            self.place(codes, row_bytes, chunk.clone());
            // The next chunk, at last that of the next rows.
            let ahead = match chunk.end == row_bytes {
                true => codes.len(),
                false => chunk.end,
            };
            let ahead = codes.as_ptr().wrapping_add(ahead);
            for (tile, first) in tiles.clone().enumerate() {
                self.near[..n_rows].fill([0; TOKENS]);
                for (pass, byte) in chunk.clone().step_by(PASS).enumerate() {
                    self.fill_tables(x, first..tokens.end.min(first + TOKENS), byte);
                    self.look_up(n_rows, pass, ahead, row_bytes);
                }
                self.widen(n_rows, tile);
            }
        }
        true
    }

    /// Where the sums of a chunk's bytes, none with the code 3, lie.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn place(&mut self, codes: &[u8], row_bytes: usize, chunk: Range<usize>) {
        const TABLE_BYTES: i16 = (size_of::<Lanes>() * SUMS) as i16;
        let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| i * TABLE_BYTES);
        let tables = _mm256_setr_epi16(a, b, c, d, e, f, g, h, a, b, c, d, e, f, g, h);
        for (r, row) in codes.chunks_exact(row_bytes).enumerate() {
            let pairs: &[[u8; 2 * PASS]] = row[chunk.clone()].as_chunks().0;
            for (bytes, places) in pairs.iter().zip(self.places.as_chunks_mut::<2>().0) {
                // SAFETY: an unaligned load of the sixteen bytes of the array.
                let packed = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
                let packed = _mm256_cvtepu8_epi16(packed);
                // From digits of four to pairs of digits of three in each half of a byte: 4a + b - a.
                let digits = _mm256_srli_epi16::<2>(packed);
                let digits = _mm256_and_si256(digits, _mm256_set1_epi16(0x33));
                let halves = _mm256_sub_epi16(packed, digits);
                // To the place of sum 9·high + low, which is 16·high + low less 7·high, among sums of 32 bytes.
                let high = _mm256_srli_epi16::<4>(halves);
                let less = _mm256_mullo_epi16(high, _mm256_set1_epi16(7 * 32));
                let place = _mm256_sub_epi16(_mm256_slli_epi16::<5>(halves), less);
                let place = _mm256_add_epi16(place, tables);
                let [first, second] = places;
                // SAFETY: unaligned stores to the sixteen bytes of each array.
                unsafe {
                    let (low, high) = (first[r].as_mut_ptr(), second[r].as_mut_ptr());
                    _mm_storeu_si128(low.cast(), _mm256_castsi256_si128(place));
                    _mm_storeu_si128(high.cast(), _mm256_extracti128_si256::<1>(place));
                }
            }
        }
    }

    /// The sums of the columns of eight bytes from `byte` of each row on, for up to sixteen tokens.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fill_tables(&mut self, x: &QuantRows, tokens: Range<usize>, byte: usize) {
        let mut columns = [[_mm256_setzero_si256(); PASS]; 4];
        for (part, columns) in columns.iter_mut().enumerate() {
            let first = byte / BLOCK_BYTES * BLOCK_COLS + part * BLOCK_BYTES + byte % BLOCK_BYTES;
            let mut rows = [_mm_setzero_si128(); TOKENS];
            for (t, row) in tokens.clone().zip(&mut rows) {
                let values: &[i8; PASS] = x.row(t).values[first..]
                    .first_chunk()
                    .expect("a row holds whole blocks");
                // SAFETY: a load of the eight bytes of the array.
                *row = unsafe { _mm_loadl_epi64(values.as_ptr().cast()) };
            }
            *columns = transposed(rows);
        }
        for (i, table) in self.tables[..PASS].iter_mut().enumerate() {
            let [a, b, c, d] = [columns[0][i], columns[1][i], columns[2][i], columns[3][i]];
            let (high, low) = (nine_sums(a, b), nine_sums(c, d));
            for (high, table) in high.into_iter().zip(table.as_chunks_mut::<9>().0) {
                for (low, sum) in low.into_iter().zip(table) {
                    // SAFETY: an unaligned store to the sixteen numbers of the array.
                    unsafe {
                        _mm256_storeu_si256(sum.as_mut_ptr().cast(), _mm256_add_epi16(high, low));
                    }
                }
            }
        }
    }

    /// Adds the sums that each row's bytes of a pass stand for. Meanwhile every eighth row's bytes of the next chunk are asked
    /// for, `ahead` being the first row's: together, they would hold up everything else.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn look_up(&mut self, n_rows: usize, pass: usize, ahead: *const u8, row_bytes: usize) {
        let tables: *const u8 = self.tables.as_ptr().cast();
        let places = self.places[pass][..n_rows].chunks(8);
        let rows = places.zip(self.near[..n_rows].chunks_mut(8));
        for (eight, (places, near)) in rows.enumerate() {
            prefetch_line(ahead.wrapping_add((8 * eight + pass) * row_bytes));
            for (places, near) in places.iter().zip(near) {
                // SAFETY: `place` made 32 times the number of a sum in one of eight tables. For the byte 255 that is 120, of the
                // last 3,840 + 7 · 2,592, which is inside the ninth.
                unsafe { add_sums(tables, *places, near) };
            }
        }
    }

    /// Adds the sums of a chunk to those of the rows.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen(&mut self, n_rows: usize, tile: usize) {
        for (near, sums) in self.near[..n_rows].iter().zip(&mut self.sums[tile]) {
            for (near, sums) in near
                .as_chunks::<8>()
                .0
                .iter()
                .zip(sums.as_chunks_mut::<8>().0)
            {
                // SAFETY: unaligned loads and a store of the eight numbers of each array.
                unsafe {
                    let near = _mm256_cvtepi16_epi32(_mm_loadu_si128(near.as_ptr().cast()));
                    let sum = _mm256_loadu_si256(sums.as_ptr().cast());
                    _mm256_storeu_si256(sums.as_mut_ptr().cast(), _mm256_add_epi32(sum, near));
                }
            }
        }
    }

    /// The products of rows, the first of them row `r`, from their sums.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn store(
        &self,
        n_rows: usize,
        scale: f32,
        x: &QuantRows,
        tokens: Range<usize>,
        r: usize,
        out: &mut [&mut [f32]],
    ) {
        for (sums, first) in self.sums.iter().zip(tokens.clone().step_by(TOKENS)) {
            let out = &mut out[first..tokens.end.min(first + TOKENS)];
            let (eights, rest) = sums[..n_rows].as_chunks::<8>();
            for (rows, r) in eights.iter().zip((r..).step_by(8)) {
                for (half, out) in out.chunks_mut(8).enumerate() {
                    let mut eight = [_mm256_setzero_si256(); 8];
                    for (row, register) in rows.iter().zip(&mut eight) {
                        // SAFETY: an unaligned load of eight of the sixteen numbers of the array.
                        *register = unsafe { _mm256_loadu_si256(row[8 * half..].as_ptr().cast()) };
                    }
                    let by_token = transposed_sums(eight);
                    for ((t, out), sums) in (first + 8 * half..).zip(out).zip(by_token) {
                        let products = _mm256_mul_ps(
                            _mm256_div_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(x.row(t).scale)),
                            _mm256_set1_ps(scale),
                        );
                        let out: &mut [f32] = &mut out[r..r + 8];
                        // SAFETY: an unaligned store to the eight numbers of the slice.
                        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), products) };
                    }
                }
            }
            for (row, r) in rest.iter().zip(r + 8 * eights.len()..) {
                for ((t, out), sum) in (first..).zip(&mut *out).zip(row) {
                    out[r] = finish(*sum, 0, x.row(t).scale, scale);
                }
            }
        }
    }
}

/// Adds to `near` what lies at the places of a pass.
///
/// # Safety
/// There are sixteen numbers at each place, in bytes, of `tables`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_sums(tables: *const u8, places: [u16; PASS], near: &mut Lanes) {
    // Two loads of four places each and shifts take less time than eight loads.
    let [a, b, c, d, e, f, g, h] = places;
    let four = |places: [u16; 4]| {
        let all = places.into_iter().rev();
        all.fold(0, |all, place| all << 16 | u64::from(place))
    };
    let (left, right) = (four([a, b, c, d]), four([e, f, g, h]));
    // SAFETY: the caller promised it. A load and a store of the numbers of `near`, unaligned as the others.
    unsafe {
        let mut all = _mm256_loadu_si256(near.as_ptr().cast());
        for places in [left, right] {
            for shift in [0, 16, 32, 48] {
                let sum = tables.add((places >> shift & 0xffff) as usize);
                all = _mm256_add_epi16(all, _mm256_loadu_si256(sum.cast()));
            }
        }
        _mm256_storeu_si256(near.as_mut_ptr().cast(), all);
    }
}

/// Whether a code is 3. Reads all codes in their order, as memory gives them fastest: from then on they are near.
#[target_feature(enable = "avx2,fma,f16c")]
fn has_code_3(codes: &[u8]) -> bool {
    let mut found = _mm256_setzero_si256();
    let blocks: &[[u8; BLOCK_BYTES]] = codes.as_chunks().0;
    for (i, block) in blocks.iter().enumerate() {
        if i % 2 == 0 {
            prefetch_line(block.as_ptr().wrapping_add(PREFETCH_BYTES));
        }
        let packed = load_bytes(block);
        let both = _mm256_and_si256(packed, _mm256_srli_epi16::<1>(packed));
        found = _mm256_or_si256(found, both);
    }
    _mm256_testz_si256(found, _mm256_set1_epi8(0x55)) == 0
}

/// `3·i + j`: the sums of two columns with weights `i - 1` and `j - 1`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nine_sums(a: __m256i, b: __m256i) -> [__m256i; 9] {
    let zero = _mm256_setzero_si256();
    let (less_a, less_b) = (_mm256_sub_epi16(zero, a), _mm256_sub_epi16(zero, b));
    [
        _mm256_sub_epi16(less_a, b),
        less_a,
        _mm256_sub_epi16(b, a),
        less_b,
        zero,
        b,
        _mm256_sub_epi16(a, b),
        a,
        _mm256_add_epi16(a, b),
    ]
}

/// The columns of sixteen rows of eight bytes, as i16. Interleaving halves four times brings each row to its lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transposed(rows: [__m128i; TOKENS]) -> [__m256i; PASS] {
    let zero = _mm_setzero_si128();
    let mut pairs = [zero; 8];
    for i in 0..8 {
        pairs[i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
    }
    let [mut fours, mut eights, mut columns] = [[zero; 8]; 3];
    for i in 0..4 {
        fours[i] = _mm_unpacklo_epi8(pairs[i], pairs[i + 4]);
        fours[i + 4] = _mm_unpackhi_epi8(pairs[i], pairs[i + 4]);
    }
    for half in [0, 4] {
        for i in half..half + 2 {
            eights[half + i % 2] = _mm_unpacklo_epi8(fours[i], fours[i + 2]);
            eights[half + 2 + i % 2] = _mm_unpackhi_epi8(fours[i], fours[i + 2]);
        }
    }
    for pair in 0..4 {
        columns[2 * pair] = _mm_unpacklo_epi8(eights[2 * pair], eights[2 * pair + 1]);
        columns[2 * pair + 1] = _mm_unpackhi_epi8(eights[2 * pair], eights[2 * pair + 1]);
    }
    let mut wide = [_mm256_setzero_si256(); PASS];
    for (column, wide) in columns.into_iter().zip(&mut wide) {
        *wide = _mm256_cvtepi8_epi16(column);
    }
    wide
}

/// Eight registers of eight numbers with rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transposed_sums(x: [__m256i; 8]) -> [__m256i; 8] {
    let zero = _mm256_setzero_si256();
    let [mut pairs, mut fours, mut eights] = [[zero; 8]; 3];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
    for half in [0, 4] {
        for i in 0..2 {
            let (a, b) = (pairs[half + i], pairs[half + 2 + i]);
            fours[half + 2 * i] = _mm256_unpacklo_epi64(a, b);
            fours[half + 2 * i + 1] = _mm256_unpackhi_epi64(a, b);
        }
    }
    for i in 0..4 {
        eights[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[i + 4]);
        eights[i + 4] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[i + 4]);
    }
    eights
}
