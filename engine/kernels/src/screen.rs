//! The output head, screened: which rows can be among the k best is found from 4-bit or 8-bit copies, so that few rows of
//! the full matrix are read; the logits of those are the full matrix's, bit for bit.
//!
//! A row w is kept as `u = 136 + round(w / scale)` with `scale = max|w| / 119`, so 17 ..= 255, in two nibble planes: `16·high + low = u`.
//! Blocks of 64 columns lie in 32 bytes, column i in the low and column 32 + i in the high nibble of byte i; the last block
//! is filled up. A query h is `128·a + b` times its own scale, a and b int8 (15 bits in all). Products of planes and
//! query are i32 and exact.
//!
//! The part a alone is the query in 8 bits. It is rounded up or down by chance, in proportion to the distances (dithered, by numbers
//! fixed for each column), so that its rounding has nothing to do with the query or the rows.
//!
//! Bounds. With ĥ the quantised query, in 15 bits or in 8, the logit `w·h` differs from the estimate of the high plane by
//! `r4·ĥ + w·(h - ĥ)`, from that of both planes by `r8·ĥ + w·(h - ĥ)`, where r4 and r8 are what the planes leave of w; and
//! from the f32 sum in its fixed order by at most [`rounding`]`·|w|·|h|`, which also covers the f32 arithmetic here.
//! - `|r8·ĥ| <= |r8|·|ĥ|` and `|w·(h - ĥ)| <= |w|·|h - ĥ|`: Cauchy-Schwarz, always true.
//! - `|r4·ĥ| <= 8 sigma` with `sigma = max(|r4|/√cols, scale·16/√12)·|ĥ|`: true with probability 1 - 1.2e-15 for each row
//!   if roundings are independent of the query; for 128,256 rows a wrong candidate set in about one of 6e9 tokens. A
//!   query whose observed errors exceed 5 sigma is not [trusted](Refined) and screened again with both planes.
//! - `|w·(128·a + b - 128·a)| <= 4.5·128·|w|`, in units of the query's scale, with ĥ in 8 bits: each column's rounding is independent, has the mean 0 and lies in an interval of
//!   128, so it is false with a probability of 2·exp(-2·4.5²) = 5e-18 at most (Hoeffding 1963, theorem 2). A query
//!   whose largest number is so large beside the others that this is too wide is read in 15 bits.
//! - `|r8·ĥ| <= 8 sigma` with `sigma = max(|r8|/√cols, scale/√12)·|ĥ|`: likewise, for the rows left, one or two of a hundred. Six times
//!   narrower than Cauchy-Schwarz at 2560 columns, so that few rows of the matrix are read. The errors of those are looked at, too.

use std::ops::Range;

use crate::query::{Query, Reading};
use crate::{DenseMatrix, Kernel, Peaks};

/// Columns of a block of a plane, and its bytes.
pub(crate) const PLANE_COLS: usize = 64;
pub(crate) const PLANE_BYTES: usize = 32;
/// Rows of a plane whose sums wait for their bounds.
pub(crate) const PLANE_ROWS: usize = 64;
/// Vectors that meet these rows together.
const PLANE_VECTORS: usize = 8;
/// Most columns: sums of 15 · 16,256 per column fit an i32.
const MOST_COLS: usize = 8192;
/// Largest |u - 136|: with rounding in the low plane's favour, 16 · 15 + 15 is the top.
const LARGEST_CODE: f32 = 119.0;
/// Of every u, so that nibbles have no sign.
const CODE_OFFSET: f32 = 136.0;
/// Of every nibble of either plane.
pub(crate) const NIBBLE_OFFSET: i32 = 8;
/// Standard deviations between estimate and logit that the high plane alone must allow for.
const SIGMAS: f32 = 8.0;
/// Share of them that makes a query suspicious when an observed error exceeds it: 5 sigma, which one query in a thousand has by chance
/// among the some thousand rows that are looked at.
const SUSPICIOUS: f32 = 0.625;
/// Standard deviation of a number spread evenly over 16 steps: 16/√12.
const EVEN_SPREAD: f32 = 4.618_803;
/// 1.5 · 2^23: adding it rounds to an integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// Rows and queries whose largest number is smaller are not scaled.
pub(crate) const SMALLEST: f32 = 1e-15;
/// Norms are sums of f32 in some order: rounded up by this factor they are upper bounds.
pub(crate) const NORM_SLACK: f32 = 1.0 + 1.0 / 4096.0;
/// `|w|·|h|` beyond which a logit might not be finite.
const LARGEST_LOGIT: f32 = 1e37;

/// Relative error of a fixed-order sum over `cols` numbers, and of the few operations on estimates.
fn rounding(cols: usize) -> f32 {
    (cols / 32 + 32) as f32 * f32::EPSILON
}

/// How sure a candidate set is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Screen {
    /// The high plane and the query in 8 bits for all rows, both planes and 15 bits for those that pass 8 standard deviations of the
    /// planes' rounding, the matrix for those that pass 8 of both planes'.
    Exact,
    /// Both planes for all rows, bounds by Cauchy-Schwarz only.
    Proven,
}

/// A matrix and its nibble planes. The planes are made row by row with [`unmade_rows`](Self::unmade_rows).
#[derive(Debug)]
pub struct ScreenedHead {
    matrix: DenseMatrix,
    high: Vec<u8>,
    low: Vec<u8>,
    rows: Vec<RowFacts>,
    n_made: usize,
    /// Of the rows made so far.
    largest: RowFacts,
}

/// What the bounds of a row need.
#[derive(Clone, Copy, Default, Debug)]
struct RowFacts {
    /// Of a step of u.
    scale: f32,
    /// 8 sigma for |ĥ| = 1.
    coarse: f32,
    /// |r8|
    fine: f32,
    /// 8 sigma of both planes for |ĥ| = 1, or `fine`.
    likely: f32,
    /// |w|; infinite when the row is not finite.
    norm: f32,
}

/// Some rows whose planes are to be made. Parts can be made by several threads.
#[derive(Debug)]
pub struct UnmadeRows<'a> {
    matrix: &'a DenseMatrix,
    first: usize,
    high: &'a mut [u8],
    low: &'a mut [u8],
    facts: &'a mut [RowFacts],
}

/// What a margin allows for.
#[derive(Clone, Copy)]
enum Margin {
    /// 8 sigma of the high plane, and the query as it is read for all rows.
    Coarse,
    /// 8 sigma of both planes.
    Likely,
    /// All that both planes can be off.
    Certain,
}

/// A row after a look at the low plane.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Refined {
    /// The logit of the row is not below.
    pub lower: f32,
    /// False when the high plane's error is so large that the 8 sigma of this query are not to be trusted.
    pub trusted: bool,
}

impl ScreenedHead {
    /// Bytes of one plane of a matrix.
    pub fn plane_bytes(rows: usize, cols: usize) -> usize {
        rows * cols.div_ceil(PLANE_COLS) * PLANE_BYTES
    }

    /// Whether a matrix of so many columns can be screened.
    pub fn fits(cols: usize) -> bool {
        cols <= MOST_COLS
    }

    /// Nothing made yet. `planes`: memory for the high and the low plane, zeros.
    ///
    /// # Panics
    /// When the matrix does not [fit](Self::fits) or a plane is not [`plane_bytes`](Self::plane_bytes) long.
    pub fn new(matrix: DenseMatrix, planes: [Vec<u8>; 2]) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        assert!(
            Self::fits(cols),
            "{cols} columns are too many to be screened"
        );
        let bytes = Self::plane_bytes(rows, cols);
        assert!(
            planes.iter().all(|plane| plane.len() == bytes),
            "a plane of this matrix has {bytes} bytes"
        );
        let [high, low] = planes;
        ScreenedHead {
            matrix,
            high,
            low,
            rows: vec![RowFacts::default(); rows],
            n_made: 0,
            largest: RowFacts::default(),
        }
    }

    /// The whole matrix.
    pub fn matrix(&self) -> &DenseMatrix {
        &self.matrix
    }

    /// The high and the low plane.
    pub fn planes(&self) -> [&[u8]; 2] {
        [&self.high, &self.low]
    }

    /// Whether all rows have been made.
    pub fn is_made(&self) -> bool {
        self.n_made == self.rows.len()
    }

    /// Bytes of a row of a plane.
    fn row_bytes(&self) -> usize {
        Self::plane_bytes(1, self.matrix.cols())
    }

    /// The next rows, at most `n`, in parts of at most `part`. They count as made when [`accept`](Self::accept) is told.
    pub fn unmade_rows(&mut self, n: usize, part: usize) -> impl Iterator<Item = UnmadeRows<'_>> {
        let row_bytes = self.row_bytes();
        let n = n.min(self.rows.len() - self.n_made);
        let (start, end) = (self.n_made, self.n_made + n);
        let high = self.high[start * row_bytes..end * row_bytes].chunks_mut(part * row_bytes);
        let low = self.low[start * row_bytes..end * row_bytes].chunks_mut(part * row_bytes);
        let facts = self.rows[start..end].chunks_mut(part);
        let matrix = &self.matrix;
        (start..).step_by(part).zip(high).zip(low.zip(facts)).map(
            move |((first, high), (low, facts))| UnmadeRows {
                matrix,
                first,
                high,
                low,
                facts,
            },
        )
    }

    /// The next `n` rows, or all that are left, have been [made](UnmadeRows::make).
    pub fn accept(&mut self, n: usize) {
        let end = self.rows.len().min(self.n_made + n);
        for facts in &self.rows[self.n_made..end] {
            self.largest.scale = self.largest.scale.max(facts.scale);
            self.largest.coarse = self.largest.coarse.max(facts.coarse);
            self.largest.fine = self.largest.fine.max(facts.fine);
            self.largest.likely = self.largest.likely.max(facts.likely);
            self.largest.norm = self.largest.norm.max(facts.norm);
        }
        self.n_made = end;
    }

    /// Whether bounds hold for this query: all numbers finite, none absurdly large or small.
    pub fn can_screen(&self, query: &Query) -> bool {
        self.is_made()
            && query.fine.scale > 0.0
            && self.largest.norm * query.fine.norm < LARGEST_LOGIT
    }

    /// For each query a lower bound of the logit of each row of `rows`, which [`width`](Self::width) turns into the upper
    /// bound. The rows should fit a cache: eight queries at a time walk over them.
    ///
    /// # Panics
    /// When there are not as many of both, an `out[n]` is not `[rows]`, or `rows` is out of range.
    pub fn lower_bounds(
        &self,
        kernel: Kernel,
        screen: Screen,
        rows: Range<usize>,
        queries: &[&Query],
        out: &mut [&mut [f32]],
    ) {
        assert_eq!(queries.len(), out.len(), "bounds for each query");
        for out in &*out {
            assert_eq!(rows.len(), out.len(), "out must be [rows]");
        }
        let (mut queries, mut out) = (queries, out);
        while !queries.is_empty() {
            let mut n_parts = 0;
            let fitting = queries.iter().take_while(|query| {
                n_parts += query.reading(screen).n_parts;
                n_parts <= PLANE_VECTORS
            });
            let n = fitting.count();
            let (these, others) = queries.split_at(n);
            let (of_these, of_others) = out.split_at_mut(n);
            self.lower_bounds_of_few(kernel, screen, rows.clone(), these, of_these);
            (queries, out) = (others, of_others);
        }
    }

    /// The same for queries that have `PLANE_VECTORS` parts at most.
    fn lower_bounds_of_few(
        &self,
        kernel: Kernel,
        screen: Screen,
        rows: Range<usize>,
        queries: &[&Query],
        out: &mut [&mut [f32]],
    ) {
        let mut vectors: [&[i8]; PLANE_VECTORS] = Default::default();
        let parts = queries.iter().flat_map(|query| query.parts(screen));
        let n_parts = vectors
            .iter_mut()
            .zip(parts)
            .map(|(to, from)| *to = from)
            .count();
        let vectors = &vectors[..n_parts];
        let mut sums = [[[0; PLANE_ROWS]; PLANE_VECTORS]; 2];
        let row_bytes = self.row_bytes();
        for start in (0..rows.len()).step_by(PLANE_ROWS) {
            let part = start..rows.len().min(start + PLANE_ROWS);
            let rows = rows.start + part.start..rows.start + part.end;
            let bytes = rows.start * row_bytes..rows.end * row_bytes;
            let n_planes = if screen == Screen::Proven { 2 } else { 1 };
            for (plane, sums) in self.planes().into_iter().zip(&mut sums).take(n_planes) {
                let mut sums = sums.each_mut().map(|sums| &mut sums[..rows.len()]);
                kernel.plane_sums(&plane[bytes.clone()], vectors, &mut sums[..n_parts]);
            }
            let [high, low] = &sums;
            let facts = BlockFacts::new(&self.rows[rows], screen.margin());
            let mut first = 0;
            for (query, out) in queries.iter().zip(&mut *out) {
                let reading = query.reading(screen);
                let these = first..first + reading.n_parts;
                first = these.end;
                let mut bounds = [0.0; PLANE_ROWS];
                reading.add_estimates(&high[these.clone()], &facts.scale, 16.0, &mut bounds);
                if screen == Screen::Proven {
                    reading.add_estimates(&low[these], &facts.scale, 1.0, &mut bounds);
                }
                let of_query = self.error(reading);
                for (bound, (planes, norm)) in bounds.iter_mut().zip(facts.margins()) {
                    *bound -= planes * reading.norm + norm * of_query;
                }
                let out = &mut out[part.clone()];
                out.copy_from_slice(&bounds[..out.len()]);
            }
        }
    }

    /// `lower + width(row)` is an upper bound of the row's logit.
    pub fn width(&self, screen: Screen, row: usize, query: &Query) -> f32 {
        2.0 * self.margin(screen.margin(), &self.rows[row], query)
    }

    /// At least the [`width`](Self::width) of every row.
    pub fn largest_width(&self, screen: Screen, query: &Query) -> f32 {
        2.0 * self.margin(screen.margin(), &self.largest, query)
    }

    /// The lower bound by both planes and all of the query, from that by the high plane and the query in 8 bits; minus infinity when the low
    /// plane shows already that the logit is below `threshold`. [`refined_width`](Self::refined_width) belongs to it.
    pub fn refine(
        &self,
        kernel: Kernel,
        row: usize,
        query: &Query,
        lower: f32,
        threshold: f32,
    ) -> Refined {
        let facts = &self.rows[row];
        let reading = query.reading(Screen::Exact);
        let correction = self.row_estimate(kernel, &self.low, row, query, reading) * facts.scale;
        let trusted = correction.abs() <= SUSPICIOUS * facts.coarse * reading.norm;
        let estimate = lower + self.margin(Margin::Coarse, facts, query) + correction;
        let upper = estimate + facts.likely * reading.norm + facts.norm * self.error(reading);
        if upper < threshold {
            let lower = f32::NEG_INFINITY;
            return Refined { lower, trusted };
        }
        let [high, low] = [&self.high, &self.low]
            .map(|plane| self.row_estimate(kernel, plane, row, query, &query.fine) * facts.scale);
        Refined {
            lower: 16.0 * high + low - self.margin(Margin::Likely, facts, query),
            trusted,
        }
    }

    /// What a row of a plane and a reading of a query come to, in steps of the row.
    fn row_estimate(
        &self,
        kernel: Kernel,
        plane: &[u8],
        row: usize,
        query: &Query,
        reading: &Reading,
    ) -> f32 {
        let row_bytes = self.row_bytes();
        let plane = &plane[row * row_bytes..(row + 1) * row_bytes];
        let (mut high, mut low) = ([0], [0]);
        let n_parts = reading.n_parts;
        let mut sums = [&mut high[..], &mut low];
        kernel.plane_sums(plane, &query.both_parts()[..n_parts], &mut sums[..n_parts]);
        reading.estimate(&[high[0], low[0]][..n_parts])
    }

    /// `lower + refined_width(row)` is an upper bound of the logit of a row that was [refined](Self::refine).
    pub fn refined_width(&self, row: usize, query: &Query) -> f32 {
        2.0 * self.margin(Margin::Likely, &self.rows[row], query)
    }

    /// Whether the logit of a refined row is as near to its estimate as the 8 sigma of this query promise.
    pub fn is_likely(&self, row: usize, query: &Query, lower: f32, logit: f32) -> bool {
        let facts = &self.rows[row];
        let estimate = lower + self.margin(Margin::Likely, facts, query);
        let of_planes = SUSPICIOUS * facts.likely * query.fine.norm;
        let of_query = facts.norm * self.error(&query.fine);
        (logit - estimate).abs() <= of_planes + of_query
    }

    /// Asks for what [`refine`](Self::refine) will read in any case.
    pub fn prefetch_row(&self, row: usize) {
        let row_bytes = self.row_bytes();
        crate::arch::prefetch_line((&raw const self.rows[row]).cast());
        crate::arch::prefetch_all(&self.low[row * row_bytes..(row + 1) * row_bytes]);
    }

    fn margin(&self, margin: Margin, facts: &RowFacts, query: &Query) -> f32 {
        let reading = match margin {
            Margin::Coarse => &query.coarse,
            Margin::Likely | Margin::Certain => &query.fine,
        };
        facts.of_planes(margin) * reading.norm + facts.norm * self.error(reading)
    }

    /// What the reading of a query is off, and rounding, for a row of length 1.
    fn error(&self, reading: &Reading) -> f32 {
        reading.error + rounding(self.matrix.cols()) * reading.norm
    }
}

impl RowFacts {
    /// What the planes can be off for |ĥ| = 1.
    fn of_planes(&self, margin: Margin) -> f32 {
        match margin {
            Margin::Coarse => self.coarse,
            Margin::Likely => self.likely,
            Margin::Certain => self.fine,
        }
    }
}

/// Facts of some rows, each kind side by side.
struct BlockFacts {
    scale: [f32; PLANE_ROWS],
    planes: [f32; PLANE_ROWS],
    norm: [f32; PLANE_ROWS],
}

impl BlockFacts {
    /// Of each row, what belongs to |ĥ| and to the error of h.
    fn margins(&self) -> impl Iterator<Item = (f32, f32)> {
        self.planes.iter().copied().zip(self.norm.iter().copied())
    }

    fn new(rows: &[RowFacts], margin: Margin) -> Self {
        let mut block = BlockFacts {
            scale: [0.0; PLANE_ROWS],
            planes: [0.0; PLANE_ROWS],
            norm: [0.0; PLANE_ROWS],
        };
        for (r, facts) in rows.iter().enumerate() {
            block.scale[r] = facts.scale;
            block.planes[r] = facts.of_planes(margin);
            block.norm[r] = facts.norm;
        }
        block
    }
}

impl Screen {
    fn margin(self) -> Margin {
        match self {
            Screen::Exact => Margin::Coarse,
            Screen::Proven => Margin::Certain,
        }
    }
}

impl UnmadeRows<'_> {
    /// Makes them. `scratch` is used as it likes.
    pub fn make(self, kernel: Kernel, scratch: &mut Vec<f32>) {
        let UnmadeRows {
            matrix,
            first,
            high,
            low,
            facts,
        } = self;
        let cols = matrix.cols();
        let row_bytes = ScreenedHead::plane_bytes(1, cols);
        scratch.clear();
        scratch.resize(cols.next_multiple_of(PLANE_COLS), 0.0);
        let planes = high
            .chunks_exact_mut(row_bytes)
            .zip(low.chunks_exact_mut(row_bytes));
        for ((row, facts), (high, low)) in (first..).zip(facts).zip(planes) {
            kernel.dense_row(matrix, row, &mut scratch[..cols]);
            *facts = make_row(scratch, cols, high, low);
        }
    }
}

/// `w`: whole blocks, zeros behind the `cols` numbers.
fn make_row(w: &[f32], cols: usize, high: &mut [u8], low: &mut [u8]) -> RowFacts {
    let largest = largest_magnitude(w);
    if !largest.is_finite() {
        return RowFacts {
            norm: f32::INFINITY,
            ..RowFacts::default()
        };
    }
    if largest < SMALLEST {
        // Squares could vanish: the planes say zero, the bounds say all there is.
        high.fill(0x88);
        low.fill(0x88);
        let norm = largest * (cols as f32).sqrt() * NORM_SLACK;
        return RowFacts {
            scale: 0.0,
            coarse: norm,
            fine: norm,
            likely: norm,
            norm,
        };
    }
    let (scale, inverse) = (largest / LARGEST_CODE, LARGEST_CODE / largest);
    // |w|², |r8|², |r4|², each in as many lanes as bytes of a block.
    let mut squares = [[0.0f32; PLANE_BYTES]; 3];
    let blocks = w.as_chunks::<PLANE_COLS>().0;
    let planes = high
        .as_chunks_mut::<PLANE_BYTES>()
        .0
        .iter_mut()
        .zip(low.as_chunks_mut::<PLANE_BYTES>().0);
    for (w, (high, low)) in blocks.iter().zip(planes) {
        let mut codes = [0u8; PLANE_COLS];
        for (code, w) in codes.iter_mut().zip(w) {
            *code = ((w * inverse + CODE_OFFSET) + ROUND).to_bits() as u8;
        }
        for i in 0..PLANE_BYTES {
            let (first, second) = (codes[i], codes[PLANE_BYTES + i]);
            high[i] = first >> 4 | second & 0xf0;
            low[i] = first & 15 | second << 4;
        }
        for (w, codes) in w
            .as_chunks::<PLANE_BYTES>()
            .0
            .iter()
            .zip(codes.as_chunks::<PLANE_BYTES>().0)
        {
            for i in 0..PLANE_BYTES {
                let r8 = w[i] - scale * (f32::from(codes[i]) - CODE_OFFSET);
                let r4 = r8 + scale * (f32::from(codes[i] & 15) - NIBBLE_OFFSET as f32);
                squares[0][i] += w[i] * w[i];
                squares[1][i] += r8 * r8;
                squares[2][i] += r4 * r4;
            }
        }
    }
    let [norm, fine, rest] = squares.map(|squares| squares.iter().sum::<f32>().sqrt());
    // f32 roundings of r8 and r4, and squares too small for f32.
    let tiny = 2.0 * largest * f32::EPSILON * (cols as f32).sqrt();
    let eight_sigma = |rest: f32, step: f32| {
        let sigma = (rest / (cols as f32).sqrt()).max(EVEN_SPREAD / 16.0 * step);
        SIGMAS * (sigma * NORM_SLACK + tiny)
    };
    let certain = fine * NORM_SLACK + 4.0 * tiny;
    RowFacts {
        scale,
        coarse: eight_sigma(rest, 16.0 * scale),
        fine: certain,
        likely: eight_sigma(fine, scale).min(certain),
        norm: norm * NORM_SLACK + tiny,
    }
}

/// max |x|; not finite when some x is not.
pub(crate) fn largest_magnitude(x: &[f32]) -> f32 {
    // The bits of |x| order as integers; NaN is above infinity.
    let bits = x
        .iter()
        .fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits(bits)
}

impl ScreenedHead {
    /// Leaves in `rows` all rows whose logit may reach `threshold`, ascending, and in `bounds` their lower bounds, which are those in `lower`: of
    /// all rows, with its `peaks`.
    pub fn survivors(
        &self,
        screen: Screen,
        (lower, peaks): (&[f32], &Peaks),
        query: &Query,
        threshold: f32,
        (rows, bounds): (&mut Vec<u32>, &mut Vec<f32>),
    ) {
        let least = threshold - self.largest_width(screen, query);
        // Of two roundings, in the direction of keeping more.
        let least = least - least.abs() * 4.0 * f32::EPSILON;
        rows.clear();
        bounds.clear();
        peaks.reaching(lower, least, |row, lower| {
            rows.push(row as u32);
            bounds.push(lower);
        });
        // Without a branch per row, so that their facts come from memory side by side.
        let mut n = 0;
        for i in 0..rows.len() {
            let (row, lower) = (rows[i], bounds[i]);
            (rows[n], bounds[n]) = (row, lower);
            n += usize::from(lower + self.width(screen, row as usize, query) >= threshold);
        }
        rows.truncate(n);
        bounds.truncate(n);
    }
}
