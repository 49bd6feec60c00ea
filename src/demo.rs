//! The model that is served when none is named, embedded in the program.

use bitnet_kernels::SharedBytes;

static DEMO: &[u8] = include_bytes!("../demo/bitnet-demo.gguf");

/// A GGUF file.
pub(crate) fn bytes() -> SharedBytes {
    SharedBytes::new(DEMO)
}
