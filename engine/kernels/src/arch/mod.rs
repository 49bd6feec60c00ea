//! One module per instruction set, and the one place that enters them. An unsafe fence: loads, stores and that entry.
//!
//! `lanes.rs` and `attend.rs` hold the f32 operations once, as text over blocks of 32 lanes; each instruction set brings the
//! block type and its primitives. Integer kernels are written out per instruction set, since integer sums are exact in any order.
#![allow(unsafe_code)]

#[macro_use]
mod attend;
#[macro_use]
mod lanes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod tiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod grouped;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod planes;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_fours;
#[cfg(target_arch = "x86_64")]
mod avx2_i2_s;
#[cfg(target_arch = "x86_64")]
mod avx2_lookup;
#[cfg(target_arch = "x86_64")]
mod avx2_planes;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_lookup;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
#[cfg(target_arch = "aarch64")]
mod neon_lookup;
mod q6_k;
mod scalar;

use crate::lookup::GroupedRows;
use crate::{Attend, DenseType, Isa, Q6Block, Q8Block, QuantRowMut, QuantRows, Score, Weigh};

/// An instruction set that this CPU was seen to have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Runnable(Isa);

impl Runnable {
    pub(crate) fn new(isa: Isa) -> Option<Runnable> {
        detected(isa).then_some(Runnable(isa))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn detected(isa: Isa) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    match isa {
        Isa::Scalar => true,
        Isa::Avx2 => avx2,
        Isa::AvxVnni => avx2 && has!("avxvnni"),
        Isa::Avx512Vnni => {
            avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni")
        }
        Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn detected(isa: Isa) -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    // Codes and numbers are loaded as they lie in files.
    let neon = has!("neon") && cfg!(target_endian = "little");
    let dotprod = neon && has!("dotprod");
    match isa {
        Isa::Scalar => true,
        Isa::Neon => neon,
        Isa::NeonDotprod => dotprod,
        Isa::NeonI8mm => dotprod && has!("i8mm"),
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected(isa: Isa) -> bool {
    isa == Isa::Scalar
}

macro_rules! enter {
    ($runnable:expr, $($function:ident)::+($($argument:expr),*)) => {
        match $runnable.0 {
            Isa::Scalar => scalar::$($function)::+($($argument),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Runnable` only exists for an instruction set whose features `detected` saw on this CPU.
            Isa::Avx2 => unsafe { avx2::$($function)::+($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::AvxVnni => unsafe { avx_vnni::$($function)::+($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni => unsafe { avx512::$($function)::+($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon::$($function)::+($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonDotprod => unsafe { neon_dotprod::$($function)::+($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonI8mm => unsafe { neon_i8mm::$($function)::+($($argument),*) },
            isa => unreachable!("`{isa}` is never runnable here"),
        }
    };
}

/// As `enter!`, for the instruction sets that have code for tables; `Kernel::new` admits no others.
macro_rules! enter_lookup {
    ($runnable:expr, $function:ident::<$width:literal>($($argument:expr),*)) => {
        match $runnable.0 {
            Isa::Scalar => scalar::$function::<$width>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a `Runnable` only exists for an instruction set whose features `detected` saw on this CPU.
            Isa::Avx2 => unsafe { avx2_lookup::$function::<$width>($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni => unsafe { avx512_lookup::$function::<$width>($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon_lookup::$function::<$width>($($argument),*) },
            isa => unreachable!("`{isa}` has no code for tables"),
        }
    };
}

/// The operations of [`Kernel`](crate::Kernel) with shapes already checked.
impl Runnable {
    pub(crate) fn quantize(self, x: &[f32], row: QuantRowMut<'_>) {
        enter!(self, quantize(x, row));
    }

    /// `codes`: whole rows in I2_S, `out[t].len()` of them.
    pub(crate) fn matmul_i2_s(
        self,
        codes: &[u8],
        scale: f32,
        x: &QuantRows,
        out: &mut [&mut [f32]],
    ) {
        enter!(self, matmul_i2_s(codes, scale, x, out));
    }

    /// `rows`: at least `out[t].len()` of them in TL1.
    pub(crate) fn matmul_tl1(
        self,
        rows: GroupedRows<'_>,
        scale: f32,
        x: &QuantRows,
        out: &mut [&mut [f32]],
    ) {
        enter_lookup!(self, matmul_lookup::<2>(rows, scale, x, out));
    }

    /// The same in TL2.
    pub(crate) fn matmul_tl2(
        self,
        rows: GroupedRows<'_>,
        scale: f32,
        x: &QuantRows,
        out: &mut [&mut [f32]],
    ) {
        enter_lookup!(self, matmul_lookup::<3>(rows, scale, x, out));
    }

    pub(crate) fn dense_row(self, ty: DenseType, row: &[u8], out: &mut [f32]) {
        match ty {
            DenseType::F32 => enter!(self, f32_row(row, out)),
            DenseType::F16 => enter!(self, f16_row(row, out)),
            DenseType::BF16 => enter!(self, bf16_row(row, out)),
            DenseType::Q8_0 => enter!(self, q8_0_row(row, out)),
            DenseType::Q6_K => enter!(self, q6_k_row(row, out)),
            DenseType::Q4_0 => enter!(self, q4_0_row(row, out)),
        }
    }

    pub(crate) fn dense_matmul(
        self,
        ty: DenseType,
        rows: &[u8],
        row_bytes: usize,
        x: &[&[f32]],
        out: &mut [&mut [f32]],
    ) {
        match ty {
            DenseType::F32 => enter!(self, f32_matmul(rows, row_bytes, x, out)),
            DenseType::F16 => enter!(self, f16_matmul(rows, row_bytes, x, out)),
            DenseType::BF16 => enter!(self, bf16_matmul(rows, row_bytes, x, out)),
            DenseType::Q8_0 => enter!(self, q8_0_matmul(rows, row_bytes, x, out)),
            DenseType::Q6_K => enter!(self, q6_k_matmul(rows, row_bytes, x, out)),
            DenseType::Q4_0 => enter!(self, q4_0_matmul(rows, row_bytes, x, out)),
        }
    }

    /// `plane`: whole rows of nibbles, two for each value of a vector, `out[n].len()` of them.
    pub(crate) fn plane_sums(self, plane: &[u8], x: &[&[i8]], out: &mut [&mut [i32]]) {
        enter!(self, plane_sums(plane, x, out));
    }

    pub(crate) fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        enter!(self, rms_norm(x, weight, eps, out));
    }

    pub(crate) fn relu2_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        enter!(self, relu2_mul(gate, up, out));
    }

    pub(crate) fn silu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        enter!(self, silu_mul(gate, up, out));
    }

    pub(crate) fn gelu_mul(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        enter!(self, gelu_mul(gate, up, out));
    }

    pub(crate) fn add(self, x: &mut [f32], y: &[f32]) {
        enter!(self, add(x, y));
    }

    pub(crate) fn softmax(self, scores: &mut [f32]) {
        enter!(self, softmax(scores));
    }

    pub(crate) fn store_q8_0(self, x: &[f32], out: &mut [Q8Block]) {
        enter!(self, store_q8_0(x, out));
    }

    pub(crate) fn store_q6_k(self, x: &[f32], out: &mut [Q6Block]) {
        enter!(self, store_q6_k(x, out));
    }

    pub(crate) fn store_f16(self, x: &[f32], out: &mut [u16]) {
        enter!(self, store_f16(x, out));
    }
}

/// Asks for all of some bytes, which will be read soon; for walks that jump.
pub(crate) fn prefetch_all(bytes: &[u8]) {
    for line in bytes.chunks(LINE_BYTES) {
        prefetch_line(line.as_ptr());
    }
}

/// Of a cache line.
const LINE_BYTES: usize = 64;

#[inline]
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)]
pub(crate) fn prefetch_line(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

#[inline]
#[cfg(target_arch = "aarch64")]
pub(crate) fn prefetch_line(line: *const u8) {
    // SAFETY: a prefetch of any address is allowed; it reads nothing.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn prefetch_line(_: *const u8) {}

/// `rounds` of 320 multiply-adds by `vpmaddubsw` and `vpaddw` in registers; `None` when this CPU has no AVX2.
pub(crate) fn byte_products(rounds: usize) -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    if detected(Isa::Avx2) {
        // SAFETY: the CPU was just seen to have the features.
        return Some(unsafe { avx2_i2_s::byte_products(rounds) });
    }
    let _ = rounds;
    None
}

/// Attention, by what a cache is made of.
pub trait Cells: Sized {
    /// All of it, for some tokens.
    fn attend(isa: Runnable, all: &mut [Attend<'_, Self>]);
    /// The scores of a range of positions.
    fn score(isa: Runnable, score: &mut Score<'_, Self>);
    /// The weighted values of a range of columns.
    fn weigh(isa: Runnable, weigh: &mut Weigh<'_, Self>);
}

macro_rules! cells {
    ($element:ty, $cells:ident) => {
        impl Cells for $element {
            fn attend(isa: Runnable, all: &mut [Attend<'_, Self>]) {
                enter!(isa, $cells::attend(all));
            }
            fn score(isa: Runnable, score: &mut Score<'_, Self>) {
                enter!(isa, $cells::score(score));
            }
            fn weigh(isa: Runnable, weigh: &mut Weigh<'_, Self>) {
                enter!(isa, $cells::weigh(weigh));
            }
        }
    };
}

cells!(u16, cells_f16);
cells!(f32, cells_f32);
cells!(Q8Block, cells_q8_0);

/// How far ahead a walk over weights asks for them: beyond the page at hand, where the hardware's own prefetch ends.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const PREFETCH_BYTES: usize = 8 << 10;

/// The one f32 expression of a ternary product. `acc`: Σ code·q, `sum`: Σ q, both exact; `s`: of the activations.
#[inline(always)]
fn finish(acc: i32, sum: i32, s: f32, scale: f32) -> f32 {
    (acc - sum) as f32 / s * scale
}
