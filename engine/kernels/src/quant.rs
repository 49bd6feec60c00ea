//! Rows of activations as int8 with one scale per row: what ternary matrices multiply.

/// `len` rows of int8 activations `[cols]`, each with its scale and the sum of its values.
///
/// A row holds `q = round(s·x)` with `s = 127 / max(|x|max, 1e-5)`; so `x ≈ q / s`.
#[derive(Clone, Debug)]
pub struct QuantRows {
    cols: usize,
    /// The rows begin at `start`, where a cache line does.
    values: Vec<i8>,
    start: usize,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// One row of [`QuantRows`], to read.
#[derive(Clone, Copy, Debug)]
pub struct QuantRow<'a> {
    /// `[cols]`
    pub values: &'a [i8],
    /// `s` of `q = round(s·x)`; NaN when the row held NaN or infinity.
    pub scale: f32,
    /// The sum of `values`.
    pub sum: i32,
}

/// One row of [`QuantRows`], to fill.
#[derive(Debug)]
pub struct QuantRowMut<'a> {
    /// `[cols]`
    pub values: &'a mut [i8],
    /// See [`QuantRow::scale`].
    pub scale: &'a mut f32,
    /// The sum of `values`.
    pub sum: &'a mut i32,
}

impl QuantRows {
    /// `max_rows` rows of `cols` zeros. Up to `max_rows · cols` values, [`resize`](Self::resize) doesn't allocate.
    pub fn new(max_rows: usize, cols: usize) -> Self {
        let mut rows = QuantRows {
            cols,
            values: Vec::new(),
            start: 0,
            scales: Vec::new(),
            sums: Vec::new(),
        };
        rows.resize(max_rows, cols);
        rows
    }

    /// Makes this `n_rows` rows of `cols`. What the rows hold afterwards is unspecified: fill them all.
    pub fn resize(&mut self, n_rows: usize, cols: usize) {
        self.cols = cols;
        self.values.resize(n_rows * cols + LINE_BYTES - 1, 0);
        self.start = self
            .values
            .as_ptr()
            .align_offset(LINE_BYTES)
            .min(LINE_BYTES - 1);
        self.scales.resize(n_rows, 1.0);
        self.sums.resize(n_rows, 0);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Values per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `t`.
    ///
    /// # Panics
    /// When `t` is not below [`len`](Self::len).
    #[inline]
    pub fn row(&self, t: usize) -> QuantRow<'_> {
        QuantRow {
            values: &self.values[self.start + t * self.cols..][..self.cols],
            scale: self.scales[t],
            sum: self.sums[t],
        }
    }

    /// All rows in order, to fill.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = QuantRowMut<'_>> {
        let rows = self.values[self.start..].chunks_exact_mut(self.cols.max(1));
        let facts = self.scales.iter_mut().zip(&mut self.sums);
        rows.zip(facts)
            .map(|(values, (scale, sum))| QuantRowMut { values, scale, sum })
    }
}
