//! Ternary and dense linear algebra for BitNet b1.58: exact integers, fixed-order floats, every instruction set the same bits.

mod storage;

pub use storage::SharedBytes;
