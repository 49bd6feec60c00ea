//! Ternary and dense linear algebra for BitNet b1.58: exact integers, fixed-order floats, every instruction set the same bits.
//!
//! A [`Kernel`] is a packing of ternary weights and an instruction set; a value of it proves that this CPU can run it.
//! Everything a transformer layer computes goes through its methods:
//!
//! - **Ternary linears**: [`Kernel::quantize`] turns a row of activations into int8, [`Kernel::matmul`] multiplies
//!   several such rows with a [`PackedMatrix`]. Inside are i32 sums, equal on every kernel for every input.
//! - **Dense rows** (embedding, output head): [`Kernel::dense_row`] and [`Kernel::dense_matmul`] on a [`DenseMatrix`].
//! - **f32 operations**: norms, activations, attention. Sums run over 32 virtual lanes (lane = index % 32) with fused
//!   multiply-add and end in one fixed tree: 16+16 lanes, 8+8, 4+4, 2+2, 1+1. A vector shorter than a multiple of 32
//!   is padded with zeros. So results don't depend on vector width, number of threads or batch size, bit for bit.
//!
//! NaN and infinity: an input that holds one gives an output that holds NaN where the mathematics has no number; nothing
//! panics, other rows and tokens stay as they are. Which NaN (its payload) is not promised.
//!
//! Bytes of weights need no alignment. Nothing here allocates except the constructors.

mod arch;
mod attention;
mod dense;
mod half;
mod kernel;
mod lookup;
mod peaks;
pub mod probe;
mod quant;
mod query;
mod screen;
mod storage;
mod ternary;

pub use attention::{Attend, CacheCell, Q8Block, Score, Weigh};
pub use dense::{DenseMatrix, DenseType, Q6Block};
pub use half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use kernel::{Isa, Kernel, Packing, ParseKernelError};
pub use peaks::{Peaks, kth_largest};
pub use quant::{QuantRow, QuantRowMut, QuantRows};
pub use query::Query;
pub use screen::{Refined, Screen, ScreenedHead, UnmadeRows};
pub use storage::SharedBytes;
pub use ternary::{MatrixError, PackedMatrix};
