//! The output head in fewer bits than its file has it, for those who ask for it: other tokens may come out than by the file's
//! own head, but the same ones whatever the kernel and the number of threads.
//!
//! It is made before the engine is ready and takes the file's head's place for everything, so a text can't see both.

use std::time::Instant;

use bitnet_kernels::{DenseMatrix, DenseType, Kernel, SharedBytes};

use crate::facts::ModelFacts;
use crate::gguf::TensorType;
use crate::os::{self, FileMap};
use crate::pool::Pool;
use crate::protocol::HeadMode;

/// Rows that a worker rounds before it asks for others.
const ROWS: usize = 64;

/// Why a head can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The file has it in fewer bits already.
    #[error("the output head is {found} in the file, a head of `{}` is made from F32, F16 or BF16", asked.name())]
    Type {
        /// In the file.
        found: TensorType,
        /// What was asked for.
        asked: HeadMode,
    },
    /// Rows end within a block.
    #[error("the output head has rows of {found} weights, `{}` takes multiples of {multiple_of}", asked.name())]
    Columns {
        /// Weights of a row.
        found: usize,
        /// Weights of a block.
        multiple_of: usize,
        /// What was asked for.
        asked: HeadMode,
    },
    /// It doesn't fit.
    #[error("there is no memory for an output head of {mb} MB")]
    Memory {
        /// What it needs.
        mb: u64,
    },
}

impl HeadError {
    /// What is possible.
    pub fn hint(&self) -> String {
        let smaller_blocks = match self {
            HeadError::Columns { found, asked, .. } => {
                *asked == HeadMode::Q6_K && found.is_multiple_of(DenseType::Q8_0.block_cols())
            }
            _ => false,
        };
        match smaller_blocks {
            true => "`--head q8_0`, or `--head full` to read it as it is in the file".to_owned(),
            false => "`--head full` reads it as it is in the file".to_owned(),
        }
    }
}

/// What `mode` makes of a model's head; `None`: nothing.
///
/// # Errors
/// When it can't be made.
pub fn target(facts: &ModelFacts, mode: HeadMode) -> Result<Option<DenseType>, HeadError> {
    let asked = mode;
    let ty = match mode {
        HeadMode::Full | HeadMode::Exact | HeadMode::Proven => return Ok(None),
        HeadMode::Q8_0 => DenseType::Q8_0,
        HeadMode::Q6_K => DenseType::Q6_K,
    };
    let found = facts.head_type;
    if !matches!(found, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
        return Err(HeadError::Type { found, asked });
    }
    let (found, multiple_of) = (facts.n_embd, ty.block_cols());
    match found.is_multiple_of(multiple_of) {
        true => Ok(Some(ty)),
        false => Err(HeadError::Columns {
            found,
            multiple_of,
            asked,
        }),
    }
}

/// Bytes of the head that `mode` makes; 0 when it makes none.
pub fn bytes(facts: &ModelFacts, mode: HeadMode) -> u64 {
    let ty = target(facts, mode).ok().flatten();
    let row_bytes = ty.and_then(|ty| ty.row_bytes(facts.n_embd));
    row_bytes.map_or(0, |bytes| (bytes * facts.n_vocab) as u64)
}

/// Puts a head of type `to`, which [`target`] named, in place of the one that lies in `map`, whose pages are given back.
///
/// # Errors
/// When there is no memory.
pub(crate) fn replace(
    head: &mut DenseMatrix,
    to: DenseType,
    kernel: Kernel,
    pool: &mut Pool,
    map: Option<&FileMap>,
) -> Result<(), HeadError> {
    let began = Instant::now();
    let (rows, cols) = (head.rows(), head.cols());
    let row_bytes = to
        .row_bytes(cols)
        .expect("rows are whole blocks: `target` said so");
    let mb = (rows * row_bytes).div_ceil(1 << 20) as u64;
    let mut bytes = os::zeroed_huge(rows * row_bytes).ok_or(HeadError::Memory { mb })?;
    let parts = bytes.chunks_mut(ROWS * row_bytes).enumerate();
    pool.for_each(pool.size(), parts, |_, (part, out)| {
        let mut numbers = vec![0.0; cols];
        for (row, out) in (part * ROWS..).zip(out.chunks_exact_mut(row_bytes)) {
            kernel.dense_row(head, row, &mut numbers);
            store(kernel, to, &numbers, out);
        }
    });
    if let Some(map) = map {
        map.release(head.bytes());
    }
    *head = DenseMatrix::new(SharedBytes::new(bytes), to, rows, cols)
        .expect("there are bytes for all rows");
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    tracing::info!(ty = %to, mb, ms, "the output head is quantised");
    Ok(())
}

/// A row.
fn store(kernel: Kernel, ty: DenseType, numbers: &[f32], out: &mut [u8]) {
    match ty {
        DenseType::Q8_0 => kernel.store_q8_0(numbers, out.as_chunks_mut().0),
        DenseType::Q6_K => kernel.store_q6_k(numbers, out.as_chunks_mut().0),
        _ => unreachable!("no head is made in {ty}"),
    }
}
