//! Kernels by name, and the operations they offer. Shapes are checked here; the arithmetic is in `arch`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::arch::Runnable;
use crate::lookup;
use crate::screen::PLANE_COLS;
use crate::{
    Attend, CacheCell, DenseMatrix, DenseType, PackedMatrix, Q6Block, Q8Block, QuantRowMut,
    QuantRows, Score, Weigh,
};

/// How ternary weights lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Packing {
    /// Two bits per weight in blocks of 128, as in Microsoft's I2_S files.
    I2S,
    /// Pairs of weights as 4-bit indices into tables of sums: 2 bits per weight.
    Tl1,
    /// Triples of weights as 4-bit indices and a sign: 5/3 bits per weight.
    Tl2,
}

impl Packing {
    /// All packings, best first.
    pub const ALL: [Packing; 3] = [Packing::I2S, Packing::Tl1, Packing::Tl2];

    /// Its name in flags and logs.
    pub fn name(self) -> &'static str {
        match self {
            Packing::I2S => "i2_s",
            Packing::Tl1 => "tl1",
            Packing::Tl2 => "tl2",
        }
    }

    /// Bytes of a `[rows, cols]` matrix; the packings with tables round rows and columns up.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        match self {
            Packing::I2S => rows.checked_mul(cols).map(|weights| weights / 4),
            Packing::Tl1 => lookup::matrix_bytes(2, rows, cols),
            Packing::Tl2 => lookup::matrix_bytes(3, rows, cols),
        }
    }

    /// Whether there is code of its own for `isa`.
    fn is_written_for(self, isa: Isa) -> bool {
        match self {
            Packing::I2S => true,
            Packing::Tl1 | Packing::Tl2 => {
                matches!(isa, Isa::Avx512Vnni | Isa::Avx2 | Isa::Neon | Isa::Scalar)
            }
        }
    }
}

/// Instruction sets that have code here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Isa {
    /// Plain Rust, on every CPU: the reference for all others.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 and the 256-bit VNNI instructions in VEX encoding.
    AvxVnni,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512Vnni,
    /// AArch64 with NEON, which all have.
    Neon,
    /// NEON and the dot product extension (FEAT_DotProd).
    NeonDotprod,
    /// NEON, the dot product and the int8 matrix extension (FEAT_I8MM).
    NeonI8mm,
}

impl Isa {
    /// All instruction sets, best first.
    pub const ALL: [Isa; 7] = [
        Isa::Avx512Vnni,
        Isa::AvxVnni,
        Isa::Avx2,
        Isa::NeonI8mm,
        Isa::NeonDotprod,
        Isa::Neon,
        Isa::Scalar,
    ];

    /// Its name in flags and logs.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx_vnni",
            Isa::Avx512Vnni => "avx512_vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon_dotprod",
            Isa::NeonI8mm => "neon_i8mm",
        }
    }
}

/// A packing and an instruction set. A value proves that this CPU can run it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    packing: Packing,
    isa: Runnable,
}

/// Which kernel.
impl Kernel {
    /// The kernel for `packing` on `isa`; `None` when this CPU lacks the instructions or there is no such kernel.
    pub fn new(packing: Packing, isa: Isa) -> Option<Kernel> {
        let isa = Runnable::new(isa).filter(|_| packing.is_written_for(isa))?;
        Some(Kernel { packing, isa })
    }

    /// All kernels this CPU can run, best first; never empty.
    pub fn available() -> Vec<Kernel> {
        let pairs = Packing::ALL
            .into_iter()
            .flat_map(|p| Isa::ALL.map(|isa| (p, isa)));
        pairs.filter_map(|(p, isa)| Kernel::new(p, isa)).collect()
    }

    /// The first of [`available`](Self::available).
    pub fn best() -> Kernel {
        Kernel::available()[0]
    }

    /// The packing it multiplies.
    pub fn packing(self) -> Packing {
        self.packing
    }

    /// The instruction set it runs on.
    pub fn isa(self) -> Isa {
        self.isa.isa()
    }
}

/// Ternary linears.
impl Kernel {
    /// One row of activations as int8: `q = round(s·x)`, half to even, with `s = 127 / max(|x|max, 1e-5)`.
    ///
    /// A row with NaN or infinity gives zeros and the scale NaN, so that every product with it is NaN.
    ///
    /// # Panics
    /// When `row` is not as long as `x`.
    pub fn quantize(self, x: &[f32], row: QuantRowMut<'_>) {
        assert_eq!(x.len(), row.values.len(), "the row must be as long as x");
        self.isa.quantize(x, row);
    }

    /// `out[t][r - rows.start] = (Σ code·q - Σ q) as f32 / s[t] · scale` for `r` in `rows` and every row `t` of `x`.
    ///
    /// The sums are i32 and exact; the f32 expression is evaluated in this order everywhere. One pass over the weights for
    /// few tokens; for many, weights are unpacked once and used for several tokens.
    ///
    /// # Panics
    /// When `w` has another packing or other columns than `x`, `rows` is out of range, or `out` is not `[x.len()][rows]`.
    pub fn matmul(
        self,
        w: &PackedMatrix,
        rows: Range<usize>,
        x: &QuantRows,
        out: &mut [&mut [f32]],
    ) {
        assert_eq!(
            w.packing(),
            self.packing,
            "the matrix has another packing than the kernel"
        );
        assert_eq!(w.cols(), x.cols(), "x must have the columns of w");
        check_out(x.len(), &rows, out);
        let scale = w.scale();
        match self.packing {
            Packing::I2S => self.isa.matmul_i2_s(w.row_bytes(rows), scale, x, out),
            Packing::Tl1 => self.isa.matmul_tl1(w.grouped_rows(rows), scale, x, out),
            Packing::Tl2 => self.isa.matmul_tl2(w.grouped_rows(rows), scale, x, out),
        }
    }
}

/// Dense rows.
impl Kernel {
    /// Row `row` of `m` as f32.
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `[cols]`.
    pub fn dense_row(self, m: &DenseMatrix, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), m.cols(), "out must be [cols]");
        self.isa.dense_row(m.ty(), m.range_bytes(row..row + 1), out);
    }

    /// The same for a row that lies elsewhere, as `ty`.
    ///
    /// # Panics
    /// When `row` is not as long as `out` needs.
    pub fn dense_values(self, ty: DenseType, row: &[u8], out: &mut [f32]) {
        assert_eq!(
            Some(row.len()),
            ty.row_bytes(out.len()),
            "row must be [out]"
        );
        self.isa.dense_row(ty, row, out);
    }

    /// `<row, x>` as by [`dense_matmul`](Self::dense_matmul), for a row that lies elsewhere, as `ty`.
    ///
    /// # Panics
    /// When `row` is not as long as `x` needs.
    pub fn dense_product(self, ty: DenseType, row: &[u8], x: &[f32]) -> f32 {
        assert_eq!(Some(row.len()), ty.row_bytes(x.len()), "row must be [x]");
        let mut out = [0.0];
        self.isa
            .dense_matmul(ty, row, row.len(), &[x], &mut [&mut out]);
        out[0]
    }

    /// `out[t][r - rows.start] = <row r, x[t]>` for `r` in `rows`; numbers are dequantised to f32, then summed in the
    /// fixed order.
    ///
    /// # Panics
    /// When an `x[t]` is not `[cols]`, `rows` is out of range, or `out` is not `[x.len()][rows]`.
    pub fn dense_matmul(
        self,
        m: &DenseMatrix,
        rows: Range<usize>,
        x: &[&[f32]],
        out: &mut [&mut [f32]],
    ) {
        for x in x {
            assert_eq!(x.len(), m.cols(), "x must have the columns of the matrix");
        }
        check_out(x.len(), &rows, out);
        self.isa
            .dense_matmul(m.ty(), m.range_bytes(rows), m.row_bytes(), x, out);
    }
}

/// Nibble planes of a screened head.
impl Kernel {
    /// `out[n][r] = Σ nibble·x[n]` for each row `r` of `plane`; blocks as `screen` describes them.
    pub(crate) fn plane_sums(self, plane: &[u8], x: &[&[i8]], out: &mut [&mut [i32]]) {
        assert_eq!(x.len(), out.len(), "out must be [x.len()][rows]");
        let (Some(first), Some(sums)) = (x.first(), out.first()) else {
            return;
        };
        let (cols, rows) = (first.len(), sums.len());
        assert!(
            cols > 0 && cols.is_multiple_of(PLANE_COLS) && x.iter().all(|x| x.len() == cols),
            "x must be whole blocks of one length"
        );
        assert!(
            out.iter().all(|out| out.len() == rows) && plane.len() == rows * cols / 2,
            "plane must be [out[n].len()] rows"
        );
        self.isa.plane_sums(plane, x, out);
    }
}

/// f32 operations.
impl Kernel {
    /// `out = (x · 1/√(mean(x²) + eps)) · weight`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), weight.len(), "weight must be as long as x");
        assert_eq!(x.len(), out.len(), "out must be as long as x");
        self.isa.rms_norm(x, weight, eps, out);
    }

    /// `out = relu(gate)² · up`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn relu2_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "up must be as long as gate");
        assert_eq!(gate.len(), out.len(), "out must be as long as gate");
        self.isa.relu2_mul(gate, up, out);
    }

    /// `out = gate / (1 + exp(-gate)) · up`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn silu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "up must be as long as gate");
        assert_eq!(gate.len(), out.len(), "out must be as long as gate");
        self.isa.silu_mul(gate, up, out);
    }

    /// `out = gate · (1 + tanh(√(2/π)·(gate + 0.044715·gate³)))/2 · up`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn gelu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "up must be as long as gate");
        assert_eq!(gate.len(), out.len(), "out must be as long as gate");
        self.isa.gelu_mul(gate, up, out);
    }

    /// `x += y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "y must be as long as x");
        self.isa.add(x, y);
    }

    /// Attention for tokens that share a cache, though each may look at fewer positions. Together or one by one, the result
    /// is the same; together the cache comes from memory once.
    ///
    /// # Panics
    /// When a length doesn't fit the shape, or head dimensions differ.
    pub fn attend<E: CacheCell>(self, all: &mut [Attend<'_, E>]) {
        for a in all.iter_mut() {
            a.check();
        }
        let mut pairs = all.windows(2);
        assert!(
            pairs.all(|pair| pair[0].head_dim == pair[1].head_dim),
            "tokens that share a cache have one head dimension"
        );
        E::attend(self.isa, all);
    }

    /// Some of the scores that [`attend`](Self::attend) computes, the same bits.
    ///
    /// # Panics
    /// When a length doesn't fit the shape.
    pub fn score<E: CacheCell>(self, mut score: Score<'_, E>) {
        score.check();
        E::score(self.isa, &mut score);
    }

    /// The scores of one head as weights: `e = exp(score - max)`, `e · (1 / Σ e)`.
    ///
    /// # Panics
    /// When there are no scores.
    pub fn softmax(self, scores: &mut [f32]) {
        assert!(!scores.is_empty(), "there must be a score");
        self.isa.softmax(scores);
    }

    /// Some columns of what [`attend`](Self::attend) makes of the weights, the same bits.
    ///
    /// # Panics
    /// When a length doesn't fit the shape, or columns aren't whole blocks.
    pub fn weigh<E: CacheCell>(self, mut weigh: Weigh<'_, E>) {
        weigh.check();
        E::weigh(self.isa, &mut weigh);
    }

    /// One head as q8_0: per 32 numbers `d = max |x| / 127` as f16 and `round(x / d)`, half to even. NaN and infinity make all
    /// numbers of their block NaN.
    ///
    /// # Panics
    /// When `out` has not one block for each 32 numbers, the last begun one included.
    pub fn store_q8_0(self, x: &[f32], out: &mut [Q8Block]) {
        assert_eq!(x.len().div_ceil(32), out.len(), "out must hold x");
        self.isa.store_q8_0(x, out);
    }

    /// A row as Q6_K. Each number is within half a step of its 16, `d · sc`, of which 32 reach the largest of them; `d` is a
    /// 127th of the largest step of 256 numbers or the next f16 above. NaN and infinity make all numbers of their block NaN.
    ///
    /// # Panics
    /// When `x` is not 256 numbers for each block of `out`.
    pub fn store_q6_k(self, x: &[f32], out: &mut [Q6Block]) {
        assert_eq!(x.len(), out.len() * 256, "out must hold x");
        self.isa.store_q6_k(x, out);
    }

    /// f32 to f16 bits, to nearest, ties to even.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn store_f16(self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len(), "out must be as long as x");
        self.isa.store_f16(x, out);
    }
}

fn check_out(n_tokens: usize, rows: &Range<usize>, out: &[&mut [f32]]) {
    assert_eq!(out.len(), n_tokens, "out must have one slice per row of x");
    for out in out {
        assert_eq!(
            out.len(),
            rows.len(),
            "each out must have one number per row of the range"
        );
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.packing, self.isa()))
    }
}

impl FromStr for Packing {
    type Err = ParseKernelError;
    fn from_str(s: &str) -> Result<Self, ParseKernelError> {
        let known = Packing::ALL.into_iter().find(|p| p.name() == s);
        known.ok_or_else(|| ParseKernelError::unknown("packing", s, &Packing::ALL))
    }
}

impl FromStr for Isa {
    type Err = ParseKernelError;
    fn from_str(s: &str) -> Result<Self, ParseKernelError> {
        let known = Isa::ALL.into_iter().find(|isa| isa.name() == s);
        known.ok_or_else(|| ParseKernelError::unknown("instruction set", s, &Isa::ALL))
    }
}

impl FromStr for Kernel {
    type Err = ParseKernelError;
    /// `i2_s/avx2`, or `i2_s` for the best instruction set.
    fn from_str(s: &str) -> Result<Self, ParseKernelError> {
        let available = Kernel::available();
        let unknown = |_| ParseKernelError::unknown("kernel", s, &available);
        let (packing, isa) = match s.split_once('/') {
            Some((packing, isa)) => (
                packing.parse().map_err(unknown)?,
                Some(isa.parse().map_err(unknown)?),
            ),
            None => (s.parse().map_err(unknown)?, None),
        };
        let matches = |k: &&Kernel| k.packing() == packing && isa.is_none_or(|isa| k.isa() == isa);
        let kernel = available.iter().find(matches).copied();
        kernel.ok_or_else(|| ParseKernelError {
            found: s.to_owned(),
            problem: Problem::NotOnThisCpu,
            available: names(&available),
        })
    }
}

/// A name that stands for no kernel, packing or instruction set, or for one that this CPU can't run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseKernelError {
    found: String,
    problem: Problem,
    available: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Problem {
    Unknown(&'static str),
    NotOnThisCpu,
}

impl ParseKernelError {
    fn unknown<T: fmt::Display>(what: &'static str, found: &str, available: &[T]) -> Self {
        ParseKernelError {
            found: found.to_owned(),
            problem: Problem::Unknown(what),
            available: names(available),
        }
    }
}

fn names<T: fmt::Display>(all: &[T]) -> String {
    let quoted: Vec<String> = all.iter().map(|x| format!("`{x}`")).collect();
    quoted.join(", ")
}

impl fmt::Display for ParseKernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ParseKernelError {
            found,
            problem,
            available,
        } = self;
        match problem {
            Problem::Unknown(what) => write!(f, "`{found}` is no {what}; there are {available}"),
            Problem::NotOnThisCpu => {
                write!(f, "this CPU can't run `{found}`; it can run {available}")
            }
        }
    }
}

impl std::error::Error for ParseKernelError {}
