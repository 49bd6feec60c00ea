//! The model that is served when none is named: a small real BitNet b1.58, made by the code in `demo/`, embedded in the
//! program.

use bitnet_kernels::SharedBytes;

static DEMO: &[u8] = include_bytes!("../demo/bitnet-demo.gguf");

/// Its name where files have a path.
pub(crate) const NAME: &str = "bitnet-demo.gguf";

/// A GGUF file; nothing is copied.
pub(crate) fn bytes() -> SharedBytes {
    SharedBytes::new(DEMO)
}
