//! Why a conversion failed: which file, which tensor or key, what was found and what was expected.

use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::GgufError;

/// Why nothing was written. The target directory is as it was.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConvertError {
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is {found}, expected {expected}", path.display())]
    Source {
        path: PathBuf,
        found: String,
        expected: &'static str,
    },
    #[error("cannot use `{}`", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("`{}`: key `{key}` is {found}, expected {expected}", path.display())]
    Key {
        path: PathBuf,
        key: String,
        found: String,
        expected: String,
    },
    #[error("`{}`: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("`{}`: tensor `{name}`: {reason}", path.display())]
    Tensor {
        path: PathBuf,
        name: String,
        reason: String,
    },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` is no regular file", path.display())]
    NoFile { path: PathBuf },
    #[error(
        "the weights read back from the new file differ from the source: tensor `{name}`, {what}"
    )]
    Changed { name: String, what: String },
    #[error("stopped before the end, nothing was written")]
    Cancelled,
}

impl ConvertError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            ConvertError::Gguf { source, .. } => return source.hint().map(str::to_owned),
            ConvertError::Damaged { .. } => {
                "the download may be incomplete; compare the file's size and checksum with its source"
            }
            ConvertError::Source { .. } => {
                "give the directory of a Hugging Face repository (config.json, *.safetensors, tokenizer), or a GGUF file"
            }
            ConvertError::Tensor { reason, .. } if reason.contains("doesn't say") => {
                "if it was trained as BitNet b1.58, say so with `--absmean`; other models lose everything by it"
            }
            ConvertError::Tensor { reason, .. } if reason.contains("no tile sizes") => {
                "name them with `--lookup-tiles ROWSxCOLS=BM/BK`, as in the kernel_config.ini the file was made with"
            }
            ConvertError::Tensor { reason, .. } if reason.contains("needs rows") => {
                "without `--outtype` a packing that holds them is taken: I2_S needs rows of a multiple of 128 weights, TQ1_0 and TQ2_0 of 256, TL2 and TL1 of their tiles"
            }
            ConvertError::File { reason, .. } if reason.contains("pre-tokenizer") => {
                "name a known one that fits with `--pre-tokenizer`"
            }
            ConvertError::Changed { .. } => {
                "memory or disk of this machine may be faulty; the new file was removed"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }

    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> ConvertError {
        let path = path.to_owned();
        move |source| ConvertError::Read { path, source }
    }

    pub(super) fn file(path: &Path, reason: impl Into<String>) -> ConvertError {
        ConvertError::File {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn tensor(path: &Path, name: &str, reason: impl ToString) -> ConvertError {
        ConvertError::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            reason: reason.to_string(),
        }
    }
}
