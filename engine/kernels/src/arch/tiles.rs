//! The walk over rows and tokens for instruction sets that sum products into i32 lanes at once.
//!
//! `tiled_matmul!(NAME #[...])` expects at the place of use: `ROWS` and `TOKENS` of a tile for many tokens; `CHAINS`, how many sums a single
//! row keeps per token so that additions don't wait for each other; `Lanes`, i32 lanes with `no_lanes`, `add_lanes` and
//! `sum_tile(sums)`, the sum of each; `TILES_FROM`, from how many tokens on several rows pay; and `step(rows, x, i, sums)`, which adds the
//! products of block `i`, a number below the length of all slices, to `sums[t][r]`.

/// Bytes of activations that stay in the first-level cache while rows pass by.
const NEAR_BYTES: usize = 32 << 10;
/// Rows whose weights wait in the second-level cache for the tokens that come next; whole tiles of two and of four.
pub(super) const NEAR_ROWS: usize = 60;

/// Tokens that a block of rows meets together.
pub(super) fn near_tokens(cols: usize, tile: usize) -> usize {
    (NEAR_BYTES / cols / tile).max(1) * tile
}

/// How many of the tokens left come next: never so many that a single one stays behind.
pub(super) fn take_near(left: usize, near: usize) -> usize {
    match left == near + 1 {
        true => near - 1,
        false => left.min(near),
    }
}

macro_rules! tiled_matmul {
    ($name:ident $(#[$isa:meta])*) => {
        /// `out[t][r]` for each row `r` of `codes`, I2_S, and each token `t`: a block of rows, which comes from memory once, with as
        /// many tokens at a time as stay in the first-level cache.
        $(#[$isa])*
        pub(super) fn $name(codes: &[u8], scale: f32, x: &QuantRows, out: &mut [&mut [f32]]) {
            if x.len() < TILES_FROM {
                return rows::<1, CHAINS>(codes, scale, x, 0..x.len(), 0, out);
            }
            let near = super::tiles::near_tokens(x.cols(), TOKENS);
            let blocks = codes.chunks(super::tiles::NEAR_ROWS * x.cols() / 4);
            for (codes, r) in blocks.zip((0..).step_by(super::tiles::NEAR_ROWS)) {
                let mut first = 0;
                while first < x.len() {
                    let n = super::tiles::take_near(x.len() - first, near);
                    rows::<ROWS, 1>(codes, scale, x, first..first + n, r, out);
                    first += n;
                }
            }
        }

        /// All rows, `R` at a time, the first of them row `r`, with `tokens`.
        #[inline]
        $(#[$isa])*
        fn rows<const R: usize, const S: usize>(
            codes: &[u8],
            scale: f32,
            x: &QuantRows,
            tokens: Range<usize>,
            r: usize,
            out: &mut [&mut [f32]],
        ) {
            let row_bytes = x.cols() / 4;
            let mut r = r;
            let mut groups = codes.chunks_exact(R * row_bytes);
            for codes in &mut groups {
                cells::<R, S>(codes, scale, x, tokens.clone(), r, out);
                r += R;
            }
            for codes in groups.remainder().chunks_exact(row_bytes) {
                cells::<1, 1>(codes, scale, x, tokens.clone(), r, out);
                r += 1;
            }
        }

        /// `R` rows, the first of them row `r`, with `tokens`, several at a time; no single token is left behind.
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
            const LESS: usize = TOKENS - 1;
            let mut t = tokens.start;
            while t < tokens.end {
                let is_first = t == tokens.start;
                let left = tokens.end - t;
                match left {
                    1 => cell::<R, 1, S>(codes, scale, x, t, is_first, r, out),
                    2 => cell::<R, 2, S>(codes, scale, x, t, is_first, r, out),
                    _ if left == LESS || left == TOKENS + 1 => {
                        cell::<R, LESS, S>(codes, scale, x, t, is_first, r, out)
                    }
                    _ => cell::<R, TOKENS, S>(codes, scale, x, t, is_first, r, out),
                }
                t += match left {
                    ..=LESS => left,
                    _ if left == TOKENS + 1 => LESS,
                    _ => TOKENS,
                };
            }
        }

        /// `R` rows times `T` tokens, in `S` chains of additions each. The first to read these rows asks for the next.
        #[inline]
        $(#[$isa])*
        fn cell<const R: usize, const T: usize, const S: usize>(
            codes: &[u8],
            scale: f32,
            x: &QuantRows,
            t: usize,
            is_first: bool,
            r: usize,
            out: &mut [&mut [f32]],
        ) {
            let blocks = x.cols() / BLOCK_COLS;
            let all: &[[u8; BLOCK_BYTES]] = &codes.as_chunks().0[..R * blocks];
            // By loops: closures handed to functions without these features are not inlined.
            let mut rows: [&[[u8; BLOCK_BYTES]]; R] = [&[]; R];
            for r in 0..R {
                rows[r] = &all[r * blocks..][..blocks];
            }
            let mut activations: [&[[i8; BLOCK_COLS]]; T] = [&[]; T];
            for i in 0..T {
                activations[i] = &x.row(t + i).values.as_chunks().0[..blocks];
            }
            let mut sums = [[[no_lanes(); R]; T]; S];
            let ahead = all.as_ptr().cast::<u8>().wrapping_add(super::PREFETCH_BYTES);
            for i in 0..blocks / S {
                if is_first {
                    for line in (0..R * S * BLOCK_BYTES).step_by(super::LINE_BYTES) {
                        super::prefetch_line(ahead.wrapping_add(i * R * S * BLOCK_BYTES + line));
                    }
                }
                for (s, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: S * (blocks / S) is at most the length of each slice.
                    unsafe { step(rows, activations, i * S + s, sums) };
                }
            }
            for i in blocks - blocks % S..blocks {
                // SAFETY: every slice is `blocks` long.
                unsafe { step(rows, activations, i, &mut sums[0]) };
            }
            let (first, others) = sums.split_first_mut().expect("there is a chain");
            for others in others {
                for (sums, others) in first.iter_mut().zip(others) {
                    for (sum, other) in sums.iter_mut().zip(others) {
                        *sum = add_lanes(*sum, *other);
                    }
                }
            }
            let found = sum_tile(first);
            for i in 0..T {
                let (x, out) = (x.row(t + i), &mut out[t + i][r..r + R]);
                for (out, sum) in out.iter_mut().zip(found[i]) {
                    *out = finish(sum, x.sum, x.scale, scale);
                }
            }
        }
    };
}
