//! The check before an engine says `ready`: every operation of the chosen kernel against the scalar reference, bit by bit.
//! A kernel that fails is named and never used; the next best one is tried.

use bitnet_kernels::{
    Attend, DenseMatrix, DenseType, Isa, Kernel, PackedMatrix, QuantRows, Query, Screen,
    ScreenedHead, SharedBytes, f32_to_f16,
};

use crate::sampler::uniform;

/// Odd counts, so that the remainders of vector loops are met, too.
const ROWS: usize = 37;
const COLS: usize = 512;
const TOKENS: usize = 11;
const HEAD_DIM: usize = 64;
const POSITIONS: usize = 29;

/// `wanted` when it passes, else the first kernel of the same packing that does.
///
/// # Errors
/// The names of all that failed, with what was wrong.
pub fn choose(wanted: Kernel) -> Result<Kernel, String> {
    let others = Kernel::available()
        .into_iter()
        .filter(|&kernel| kernel != wanted);
    let same = others.filter(|kernel| kernel.packing() == wanted.packing());
    first_sound([wanted].into_iter().chain(same), check)
}

fn first_sound<K: Copy + std::fmt::Display>(
    kernels: impl Iterator<Item = K>,
    check: impl Fn(K) -> Result<(), String>,
) -> Result<K, String> {
    let mut failures = Vec::new();
    for kernel in kernels {
        match check(kernel) {
            Ok(()) => return Ok(kernel),
            Err(what) => {
                tracing::error!(%kernel, what, "kernel fails its self-test and is not used");
                failures.push(format!("`{kernel}`: {what}"));
            }
        }
    }
    Err(failures.join("; "))
}

/// Compares all operations of a kernel with the scalar ones of the same packing.
///
/// # Errors
/// The operation that differs.
pub fn check(kernel: Kernel) -> Result<(), String> {
    let Some(reference) = Kernel::new(kernel.packing(), Isa::Scalar) else {
        return Err("there is no scalar reference".to_owned());
    };
    let (found, expected) = (golden(kernel), golden(reference));
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        if found.len() != expected.len() || !found.iter().zip(expected).all(same) {
            return Err(format!("`{name}` differs from the scalar reference"));
        }
    }
    Ok(())
}

/// Results of every operation on the same random input.
fn golden(kernel: Kernel) -> Vec<(&'static str, Vec<f32>)> {
    let x = random(1, TOKENS * COLS);
    let ternary: Vec<i8> = random(2, ROWS * COLS)
        .iter()
        .map(|v| v.round().clamp(-1.0, 1.0) as i8)
        .collect();
    let matrix = PackedMatrix::from_ternary(kernel.packing(), ROWS, COLS, 0.37, &ternary)
        .expect("the shape is valid");
    let norm = random(3, COLS);
    let of_rows = |operation: &dyn Fn(&[f32], &mut [f32])| {
        let mut out = vec![0.0; x.len()];
        for (x, out) in x.chunks_exact(COLS).zip(out.chunks_exact_mut(COLS)) {
            operation(x, out);
        }
        out
    };
    vec![
        ("matmul", matmul(kernel, &matrix, &x)),
        ("matvec", matmul(kernel, &matrix, &x[..COLS])),
        (
            "dense_matmul f16",
            dense(kernel, DenseType::F16, half_bytes(4), &x),
        ),
        (
            "dense_matmul f32",
            dense(kernel, DenseType::F32, single_bytes(4), &x),
        ),
        (
            "rms_norm",
            of_rows(&|x, out| kernel.rms_norm(x, &norm, 1e-5, out)),
        ),
        (
            "relu2_mul",
            of_rows(&|x, out| kernel.relu2_mul(x, &norm, out)),
        ),
        (
            "silu_mul",
            of_rows(&|x, out| kernel.silu_mul(x, &norm, out)),
        ),
        ("attend_f16", attend(kernel)),
        ("screened head", screen(kernel, &x)),
    ]
}

fn matmul(kernel: Kernel, matrix: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let mut quant = QuantRows::new(TOKENS, COLS);
    quant.resize(x.len() / COLS, COLS);
    for (x, row) in x.chunks_exact(COLS).zip(quant.rows_mut()) {
        kernel.quantize(x, row);
    }
    let mut out = vec![0.0; quant.len() * ROWS];
    kernel.matmul(
        matrix,
        0..ROWS,
        &quant,
        &mut out.chunks_exact_mut(ROWS).collect::<Vec<_>>(),
    );
    out
}

fn dense(kernel: Kernel, ty: DenseType, bytes: Vec<u8>, x: &[f32]) -> Vec<f32> {
    let matrix =
        DenseMatrix::new(SharedBytes::new(bytes), ty, ROWS, COLS).expect("the shape is valid");
    let x: Vec<&[f32]> = x.chunks_exact(COLS).collect();
    let mut out = vec![0.0; x.len() * ROWS];
    kernel.dense_matmul(
        &matrix,
        0..ROWS,
        &x,
        &mut out.chunks_exact_mut(ROWS).collect::<Vec<_>>(),
    );
    out
}

fn screen(kernel: Kernel, x: &[f32]) -> Vec<f32> {
    let bytes = SharedBytes::new(half_bytes(8));
    let matrix = DenseMatrix::new(bytes, DenseType::F16, ROWS, COLS).expect("the shape is valid");
    let plane = vec![0; ScreenedHead::plane_bytes(ROWS, COLS)];
    let mut head = ScreenedHead::new(matrix, [plane.clone(), plane]);
    let mut scratch = Vec::new();
    for rows in head.unmade_rows(ROWS, ROWS) {
        rows.make(kernel, &mut scratch);
    }
    head.accept(ROWS);
    let (mut query, mut out) = (Query::default(), vec![0.0; x.len() / COLS * ROWS]);
    for (x, out) in x.chunks_exact(COLS).zip(out.chunks_exact_mut(ROWS)) {
        query.set(x);
        head.lower_bounds(kernel, Screen::Proven, 0..ROWS, &[&query], &mut [out]);
    }
    out
}

fn attend(kernel: Kernel) -> Vec<f32> {
    let half = |seed: u32| {
        random(seed, POSITIONS * HEAD_DIM)
            .into_iter()
            .map(f32_to_f16)
            .collect::<Vec<u16>>()
    };
    let (q, k, v) = (random(5, 3 * HEAD_DIM), half(6), half(7));
    let mut out = vec![0.0; q.len()];
    kernel.attend(&mut [Attend {
        q: &q,
        k: &k,
        v: &v,
        head_dim: HEAD_DIM,
        n_pos: POSITIONS,
        scale: 0.125,
        scores: &mut vec![0.0; 3 * POSITIONS],
        out: &mut out,
    }]);
    out
}

fn half_bytes(seed: u32) -> Vec<u8> {
    random(seed, ROWS * COLS)
        .into_iter()
        .flat_map(|v| f32_to_f16(v).to_le_bytes())
        .collect()
}

fn single_bytes(seed: u32) -> Vec<u8> {
    random(seed, ROWS * COLS)
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect()
}

/// Numbers from -2 to 2.
fn random(seed: u32, n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (4.0 * uniform(seed, i) - 2.0) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_here_is_sound() {
        for kernel in Kernel::available() {
            assert_eq!(check(kernel), Ok(()), "{kernel}");
            assert_eq!(choose(kernel), Ok(kernel));
        }
    }

    #[test]
    fn a_failing_kernel_is_named_and_the_next_one_taken() {
        let check = |kernel: &str| match kernel {
            "good" => Ok(()),
            _ => Err("`matmul` differs".to_owned()),
        };
        assert_eq!(
            first_sound(["bad", "good", "better"].into_iter(), check),
            Ok("good")
        );
        let error = first_sound(["bad", "worse"].into_iter(), check).unwrap_err();
        assert_eq!(error, "`bad`: `matmul` differs; `worse`: `matmul` differs");
    }
}
