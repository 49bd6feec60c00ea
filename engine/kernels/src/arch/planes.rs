//! The walk over rows of a nibble plane, some rows and some vectors at a time, so that nibbles are unpacked once for several vectors.
//!
//! `plane_walk!` takes the tiles as `VECTORS: ROWS`, most vectors first and one last, and expects at the place of use
//! `plane_tile::<R, T, S>(rows, x, ahead)`, the sums of `R` rows, which lie one behind another, with `T` vectors, in `S` chains of additions each; it asks for
//! what lies `ahead` of the rows, if that is given. A row that is left alone takes `PLANE_CHAINS` of them.

macro_rules! plane_walk {
    ($(#[$isa:meta])* $($vectors:literal: $rows:literal),+) => {
        /// `out[n][r] = Σ nibble·x[n]` for each row `r` of `plane`.
        $(#[$isa])*
        pub(super) fn plane_sums(plane: &[u8], x: &[&[i8]], out: &mut [&mut [i32]]) {
            let mut n = 0;
            while n < x.len() {
                let left = x.len() - n;
                $(
                    if left >= $vectors {
                        plane_rows::<$rows, $vectors>(plane, &x[n..], n == 0, &mut out[n..]);
                        n += $vectors;
                        continue;
                    }
                )+
            }
        }

        /// The first `T` vectors, with `R` rows at a time. The first to read the rows asks for the next.
        #[inline]
        $(#[$isa])*
        fn plane_rows<const R: usize, const T: usize>(
            plane: &[u8],
            x: &[&[i8]],
            is_first: bool,
            out: &mut [&mut [i32]],
        ) {
            let blocks = x[0].len() / PLANE_COLS;
            // By loops: closures handed to functions without these features are not inlined.
            let mut vectors: [&[[i8; PLANE_COLS]]; T] = [&[]; T];
            for n in 0..T {
                vectors[n] = &x[n].as_chunks().0[..blocks];
            }
            let rows: &[[u8; PLANE_BYTES]] = plane.as_chunks().0;
            let n_rows = rows.len() / blocks;
            // Behind a single row comes nothing that is wanted.
            let ahead = (is_first && n_rows > 1).then_some(super::PREFETCH_BYTES);
            let whole = n_rows - n_rows % R;
            let mut r = 0;
            while r < whole {
                let sums = plane_tile::<R, T, 1>(&rows[r * blocks..(r + R) * blocks], vectors, ahead);
                for n in 0..T {
                    out[n][r..r + R].copy_from_slice(&sums[n]);
                }
                r += R;
            }
            while r < n_rows {
                let row = &rows[r * blocks..(r + 1) * blocks];
                let sums = plane_tile::<1, T, PLANE_CHAINS>(row, vectors, ahead);
                for n in 0..T {
                    out[n][r] = sums[n][0];
                }
                r += 1;
            }
        }
    };
}
