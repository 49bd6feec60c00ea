//! The walk over rows and tokens for instruction sets that sum products into i32 lanes at once.
//!
//! `tiled_matmul!` expects at the place of use: `ROWS` and `TOKENS` of a tile for many tokens; `CHAINS`, how many sums a single
//! row keeps per token so that additions don't wait for each other; `Lanes`, i32 lanes with `no_lanes`, `add_lanes`,
//! `sum_lanes`; `prefetch`; and `step(rows, x, i, sums)`, which adds the products of block `i` to `sums[t][r]`.

/// Bytes of activations that should stay in the second-level cache while all rows pass by.
const PANEL_BYTES: usize = 256 << 10;

/// Tokens per pass over the weights.
pub(super) fn token_panel(cols: usize, tile: usize) -> usize {
    (PANEL_BYTES / cols / tile).max(1) * tile
}

macro_rules! tiled_matmul {
    ($(#[$isa:meta])*) => {
        /// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`.
        $(#[$isa])*
        pub(super) fn matmul_i2_s(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
            let panel = token_panel(x.cols(), TOKENS);
            for first in (0..x.len()).step_by(panel) {
                let tokens = first..x.len().min(first + panel);
                match x.len() {
                    ..TOKENS => rows::<1, CHAINS>(codes, scale, x, tokens, out),
                    _ => rows::<ROWS, 1>(codes, scale, x, tokens, out),
                }
            }
        }

        /// All rows, `R` at a time, with `tokens`.
        #[inline]
        $(#[$isa])*
        fn rows<const R: usize, const S: usize>(
            codes: &[u8],
            scale: f32,
            x: &QuantRows,
            tokens: Range<usize>,
            out: &mut [&mut [f32]],
        ) {
            let row_bytes = x.cols() / 4;
            let mut groups = codes.chunks_exact(R * row_bytes);
            let mut r = 0;
            for codes in &mut groups {
                cells::<R, S>(codes, scale, x, tokens.clone(), r, out);
                r += R;
            }
            for codes in groups.remainder().chunks_exact(row_bytes) {
                cells::<1, 1>(codes, scale, x, tokens.clone(), r, out);
                r += 1;
            }
        }

        /// `R` rows, the first of them row `r`, with `tokens`, several at a time.
        #[inline]
        $(#[$isa])*
        fn cells<const R: usize, const S: usize>(
            codes: &[u8],
            scale: f32,
            x: &QuantRows,
            tokens: Range<usize>,
            r: usize,
            out: &mut [&mut [f32]],
        ) {
            let mut t = tokens.start;
            while t + TOKENS <= tokens.end {
                cell::<R, TOKENS, S>(codes, scale, x, t, r, out);
                t += TOKENS;
            }
            while t + 2 <= tokens.end {
                cell::<R, 2, S>(codes, scale, x, t, r, out);
                t += 2;
            }
            while t < tokens.end {
                cell::<R, 1, S>(codes, scale, x, t, r, out);
                t += 1;
            }
        }

        /// `R` rows times `T` tokens, in `S` chains of additions each.
        #[inline]
        $(#[$isa])*
        fn cell<const R: usize, const T: usize, const S: usize>(
            codes: &[u8],
            scale: f32,
            x: &QuantRows,
            t: usize,
            r: usize,
            out: &mut [&mut [f32]],
        ) {
            let blocks = x.cols() / BLOCK_COLS;
            let all: &[[u8; BLOCK_BYTES]] = codes.as_chunks().0;
            let rows: [&[[u8; BLOCK_BYTES]]; R] = std::array::from_fn(|r| &all[r * blocks..][..blocks]);
            let tokens: [QuantRow<'_>; T] = std::array::from_fn(|i| x.row(t + i));
            let activations: [&[[i8; BLOCK_COLS]]; T] = tokens.map(|x| &x.values.as_chunks().0[..blocks]);
            let mut sums = [[[no_lanes(); R]; T]; S];
            let whole = blocks - blocks % S;
            for i in (0..whole).step_by(S) {
                if R == 1 {
                    all[i..i + S].iter().step_by(2).for_each(|block| prefetch(block));
                }
                for (s, sums) in sums.iter_mut().enumerate() {
                    step(rows, activations, i + s, sums);
                }
            }
            for i in whole..blocks {
                step(rows, activations, i, &mut sums[0]);
            }
            for (i, x) in tokens.iter().enumerate() {
                for j in 0..R {
                    let mut lanes = sums[0][i][j];
                    for sums in &sums[1..] {
                        lanes = add_lanes(lanes, sums[i][j]);
                    }
                    out[t + i][r + j] = finish(sum_lanes(lanes), x.sum, x.scale, scale);
                }
            }
        }
    };
}
