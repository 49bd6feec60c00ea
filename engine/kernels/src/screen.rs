//! The output head, screened: which rows can be among the k best is found from 4-bit or 8-bit copies, so that few rows of
//! the full matrix are read; the logits of those are the full matrix's, bit for bit.
//!
//! A row w is kept as `u = 136 + round(w / scale)` with `scale = max|w| / 119`, so 17 ..= 255, in two nibble planes: `16·high + low = u`.
//! Blocks of 64 columns lie in 32 bytes, column i in the low and column 32 + i in the high nibble of byte i; the last block
//! is filled up. A query h is `128·a + b` times its own scale, a and b int8 (15 bits in all). Products of planes and
//! query are i32 and exact.
//!
//! Bounds. With ĥ the quantised query, the logit `w·h` differs from the estimate of the high plane by
//! `r4·ĥ + w·(h - ĥ)`, from that of both planes by `r8·ĥ + w·(h - ĥ)`, where r4 and r8 are what the planes leave of w; and
//! from the f32 sum in its fixed order by at most [`rounding`]`·|w|·|h|`, which also covers the f32 arithmetic here.
//! - `|r8·ĥ| <= |r8|·|ĥ|` and `|w·(h - ĥ)| <= |w|·|h - ĥ|`: Cauchy-Schwarz, always true.
//! - `|r4·ĥ| <= 8 sigma` with `sigma = max(|r4|/√cols, scale·16/√12)·|ĥ|`: true with probability 1 - 1.2e-15 for each row
//!   if roundings are independent of the query; for 128,256 rows a wrong candidate set in about one of 6e9 tokens. A
//!   query whose observed errors exceed 6 sigma is not [trusted](Refined) and screened again with both planes.
//! - `|r8·ĥ| <= 8 sigma` with `sigma = max(|r8|/√cols, scale/√12)·|ĥ|`: likewise, for the rows left, about a tenth of all. Six times
//!   narrower than Cauchy-Schwarz at 2560 columns, so that few rows of the matrix are read. The errors of those are looked at, too.

use std::ops::Range;

use crate::{DenseMatrix, Kernel};

/// Columns of a block of a plane, and its bytes.
pub(crate) const PLANE_COLS: usize = 64;
pub(crate) const PLANE_BYTES: usize = 32;
/// Most columns: sums of 15 · 16,256 per column fit an i32.
const MOST_COLS: usize = 8192;
/// Largest |u - 136|: with rounding in the low plane's favour, 16 · 15 + 15 is the top.
const LARGEST_CODE: f32 = 119.0;
/// Of every u, so that nibbles have no sign.
const CODE_OFFSET: f32 = 136.0;
/// Of every nibble of either plane.
const NIBBLE_OFFSET: i32 = 8;
/// Largest value of a quantised query: 127 · 128.
const LARGEST_QUERY: f32 = 16_256.0;
/// Standard deviations between estimate and logit that the high plane alone must allow for.
const SIGMAS: f32 = 8.0;
/// Share of them that makes a query suspicious when an observed error exceeds it.
const SUSPICIOUS: f32 = 0.75;
/// Standard deviation of a number spread evenly over 16 steps: 16/√12.
const EVEN_SPREAD: f32 = 4.618_803;
/// 1.5 · 2^23: adding it rounds to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;
/// Rows and queries whose largest number is smaller are not scaled.
const SMALLEST: f32 = 1e-15;
/// Norms are sums of f32 in some order: rounded up by this factor they are upper bounds.
const NORM_SLACK: f32 = 1.0 + 1.0 / 4096.0;
/// `|w|·|h|` beyond which a logit might not be finite.
const LARGEST_LOGIT: f32 = 1e37;

/// Relative error of a fixed-order sum over `cols` numbers, and of the few operations on estimates.
fn rounding(cols: usize) -> f32 {
    (cols / 32 + 32) as f32 * f32::EPSILON
}

/// How sure a candidate set is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Screen {
    /// The high plane for all rows, the low plane for those that pass 8 standard deviations of its rounding, the matrix for
    /// those that pass 8 of both planes'.
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
    /// 8 sigma of the high plane.
    Coarse,
    /// 8 sigma of both planes.
    Likely,
    /// All that both planes can be off.
    Certain,
}

/// A vector that is multiplied with all rows.
#[derive(Clone, Default, Debug)]
pub struct Query {
    high: Vec<i8>,
    low: Vec<i8>,
    sum: i32,
    scale: f32,
    /// At least |h| and |ĥ|.
    norm: f32,
    /// At least |h - ĥ|.
    error: f32,
}

/// A row after a look at the low plane.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Refined {
    /// No logit of the row is below.
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
        self.is_made() && query.scale > 0.0 && self.largest.norm * query.norm < LARGEST_LOGIT
    }

    /// For each query a lower bound of the logit of each row of `rows`, which [`width`](Self::width) turns into the upper
    /// bound. One walk over the planes for all; more than four do not compile.
    ///
    /// # Panics
    /// When an `out[n]` is not `[rows]` or `rows` is out of range.
    pub fn lower_bounds<const N: usize>(
        &self,
        kernel: Kernel,
        screen: Screen,
        rows: Range<usize>,
        queries: [&Query; N],
        mut out: [&mut [f32]; N],
    ) {
        /// Rows whose sums wait between planes and bounds.
        const BLOCK: usize = 64;
        for out in &out {
            assert_eq!(rows.len(), out.len(), "out must be [rows]");
        }
        let mut sums = [[[0; BLOCK]; N]; 2];
        for start in (0..rows.len()).step_by(BLOCK) {
            let part = start..rows.len().min(start + BLOCK);
            let rows = rows.start + part.start..rows.start + part.end;
            let [high, low] = &mut sums;
            let planes = [(&self.high, &mut *high), (&self.low, &mut *low)];
            let n_planes = if screen == Screen::Proven { 2 } else { 1 };
            for (plane, sums) in planes.into_iter().take(n_planes) {
                let sums = sums.each_mut().map(|sums| &mut sums[..rows.len()]);
                self.plane_sums(kernel, plane, rows.clone(), queries, sums);
            }
            for (n, (query, out)) in queries.into_iter().zip(&mut out).enumerate() {
                let sums = high[n].iter().zip(&low[n]);
                let facts = self.rows[rows.clone()].iter().zip(sums);
                for (out, (facts, (high, low))) in out[part.clone()].iter_mut().zip(facts) {
                    let mut estimate = query.estimate(*high, facts.scale * 16.0);
                    if screen == Screen::Proven {
                        estimate += query.estimate(*low, facts.scale);
                    }
                    *out = estimate - self.margin(screen.margin(), facts, query);
                }
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

    /// The lower bound by both planes, from the one by the high plane; [`refined_width`](Self::refined_width) belongs to it.
    pub fn refine(&self, kernel: Kernel, row: usize, query: &Query, lower: f32) -> Refined {
        let facts = &self.rows[row];
        let mut sum = [0];
        self.plane_sums(kernel, &self.low, row..row + 1, [query], [&mut sum]);
        let correction = query.estimate(sum[0], facts.scale);
        let estimate = lower + self.margin(Margin::Coarse, facts, query) + correction;
        Refined {
            lower: estimate - self.margin(Margin::Likely, facts, query),
            trusted: correction.abs() <= SUSPICIOUS * facts.coarse * query.norm,
        }
    }

    /// `lower + refined_width(row)` is an upper bound of the logit of a row that was [refined](Self::refine).
    pub fn refined_width(&self, row: usize, query: &Query) -> f32 {
        2.0 * self.margin(Margin::Likely, &self.rows[row], query)
    }

    /// Whether the logit of a refined row is as near to its estimate as the 8 sigma of this query promise.
    pub fn is_likely(&self, row: usize, query: &Query, lower: f32, logit: f32) -> bool {
        let facts = &self.rows[row];
        let estimate = lower + self.margin(Margin::Likely, facts, query);
        let of_query = self.margin(Margin::Likely, facts, query) - facts.likely * query.norm;
        (logit - estimate).abs() <= SUSPICIOUS * facts.likely * query.norm + of_query
    }

    /// Asks for what [`refine`](Self::refine) will read.
    pub fn prefetch_row(&self, row: usize) {
        let row_bytes = self.row_bytes();
        crate::arch::prefetch_all(&self.low[row * row_bytes..(row + 1) * row_bytes]);
    }

    fn margin(&self, margin: Margin, facts: &RowFacts, query: &Query) -> f32 {
        let of_planes = match margin {
            Margin::Coarse => facts.coarse,
            Margin::Likely => facts.likely,
            Margin::Certain => facts.fine,
        };
        let of_query = query.error + rounding(self.matrix.cols()) * query.norm;
        of_planes * query.norm + facts.norm * of_query
    }

    fn plane_sums<const N: usize>(
        &self,
        kernel: Kernel,
        plane: &[u8],
        rows: Range<usize>,
        queries: [&Query; N],
        mut out: [&mut [i32]; N],
    ) {
        let row_bytes = self.row_bytes();
        let plane = &plane[rows.start * row_bytes..rows.end * row_bytes];
        let parts = queries.map(|query| [&query.high[..], &query.low[..]]);
        kernel.plane_sums(plane, parts, out.each_mut().map(|out| &mut **out));
        for (query, out) in queries.into_iter().zip(out) {
            for sum in out {
                *sum -= NIBBLE_OFFSET * query.sum;
            }
        }
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
fn largest_magnitude(x: &[f32]) -> f32 {
    // The bits of |x| order as integers; NaN is above infinity.
    let bits = x
        .iter()
        .fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    f32::from_bits(bits)
}

impl Query {
    /// Takes `h`, `[cols]`. One that is zero, too small or not finite [can't be screened](ScreenedHead::can_screen).
    pub fn set(&mut self, h: &[f32]) {
        let len = h.len().next_multiple_of(PLANE_COLS);
        self.high.clear();
        self.low.clear();
        self.high.resize(len, 0);
        self.low.resize(len, 0);
        let largest = largest_magnitude(h);
        if !(SMALLEST..SMALLEST.recip()).contains(&largest) {
            self.scale = 0.0;
            return;
        }
        let inverse = LARGEST_QUERY / largest;
        self.scale = largest / LARGEST_QUERY;
        self.sum = 0;
        let (mut squares, mut errors) = (0.0f64, 0.0f64);
        for ((h, high), low) in h.iter().zip(&mut self.high).zip(&mut self.low) {
            let code = (h * inverse + ROUND) - ROUND;
            let upper = (code / 128.0 + ROUND) - ROUND;
            *high = upper as i8;
            *low = (code - 128.0 * upper) as i8;
            self.sum += code as i32;
            let (h, quantised) = (f64::from(*h), f64::from(code) * f64::from(self.scale));
            squares += (h * h).max(quantised * quantised);
            errors += (h - quantised) * (h - quantised);
        }
        self.norm = squares.sqrt() as f32 * NORM_SLACK;
        self.error = errors.sqrt() as f32 * NORM_SLACK;
    }

    /// `sum` steps of a plane, one of which is worth `step`.
    fn estimate(&self, sum: i32, step: f32) -> f32 {
        sum as f32 * (step * self.scale)
    }
}

/// The `k`-th largest of `values`; `None` when there are fewer. `scratch` is used as it likes.
pub fn kth_largest(values: &[f32], k: usize, scratch: &mut Vec<f32>) -> Option<f32> {
    const BLOCK: usize = 64;
    if k == 0 || values.len() < k {
        return None;
    }
    let full = 2 * k + 256;
    scratch.clear();
    let mut floor = f32::NEG_INFINITY;
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    for block in values.chunks(BLOCK) {
        if !block
            .iter()
            .fold(false, |any, &value| any | (value > floor))
        {
            continue;
        }
        scratch.extend(block.iter().filter(|&&value| value > floor));
        if scratch.len() >= full {
            scratch.select_nth_unstable_by(k - 1, descending);
            scratch.truncate(k);
            floor = scratch[k - 1];
        }
    }
    (scratch.len() >= k).then(|| *scratch.select_nth_unstable_by(k - 1, descending).1)
}

impl ScreenedHead {
    /// Appends to `rows` all rows whose logit may reach `threshold`, ascending. `lower`: of all rows.
    pub fn survivors(
        &self,
        screen: Screen,
        lower: &[f32],
        query: &Query,
        threshold: f32,
        rows: &mut Vec<u32>,
    ) {
        const BLOCK: usize = 64;
        let least = threshold - self.largest_width(screen, query);
        // Of two roundings, in the direction of keeping more.
        let least = least - least.abs() * 4.0 * f32::EPSILON;
        for (first, block) in (0..).step_by(BLOCK).zip(lower.chunks(BLOCK)) {
            if !block
                .iter()
                .fold(false, |any, &lower| any | (lower >= least))
            {
                continue;
            }
            let reaches =
                |&(row, lower): &(usize, &f32)| lower + self.width(screen, row, query) >= threshold;
            let block = (first..).zip(block).filter(reaches);
            rows.extend(block.map(|(row, _)| row as u32));
        }
    }
}
