//! Text to token ids and back, from the keys of a GGUF.

pub(crate) mod byte_symbols;
