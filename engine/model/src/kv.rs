//! The key/value cache: for each slot, the keys and values of the tokens it has evaluated, and which tokens those are.
//!
//! Layout of one slot: keys, then values, each `[n_layer, n_head_kv, context, head_dim]`, so that attention of one head reads
//! one contiguous run. In q8_0 the values of a head are blocks of 32, the last one filled with zeros. Memory is reserved at start and becomes resident page by page as positions are written.

use std::ops::Range;

use bitnet_kernels::{CacheCell, Q8Block};

use crate::os::{Number, zeroed};
use crate::protocol::KvType;

/// Sizes of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Sequences.
    pub n_slots: usize,
    /// Tokens each slot holds.
    pub context: usize,
    /// Layers of the model.
    pub n_layer: usize,
    /// Key/value heads of a layer.
    pub n_head_kv: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Element type.
    pub kv_type: KvType,
}

/// The system refuses the address space for the cache.
#[derive(Debug, thiserror::Error)]
#[error("no memory for a KV cache of {n_slots} slots x {context} tokens ({bytes} bytes)")]
pub struct KvError {
    n_slots: usize,
    context: usize,
    bytes: u128,
}

/// All slots.
pub struct KvCache {
    shape: KvShape,
    slots: Vec<Slot>,
}

struct Slot {
    cells: Cells,
    tokens: Vec<u32>,
}

enum Cells {
    F16 {
        keys: Vec<u16>,
        values: Vec<u16>,
    },
    F32 {
        keys: Vec<f32>,
        values: Vec<f32>,
    },
    Q8_0 {
        keys: Vec<Q8Block>,
        values: Vec<Q8Block>,
    },
}

/// Keys and values of one head, each `[n_pos, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub enum HeadCells<'a> {
    /// IEEE half precision, as bits.
    F16 {
        /// Keys.
        keys: &'a [u16],
        /// Values.
        values: &'a [u16],
    },
    /// Single precision.
    F32 {
        /// Keys.
        keys: &'a [f32],
        /// Values.
        values: &'a [f32],
    },
    /// Blocks of 32.
    Q8_0 {
        /// Keys.
        keys: &'a [Q8Block],
        /// Values.
        values: &'a [Q8Block],
    },
}

/// One head of one slot in one layer, to write into.
pub struct HeadWriter<'a> {
    /// Slot.
    pub slot: usize,
    /// Key/value head.
    pub head: usize,
    /// Its cells, `[context, head_dim]` each.
    pub cells: HeadCellsMut<'a>,
}

/// As [`HeadCells`], to write.
pub enum HeadCellsMut<'a> {
    /// Half precision.
    F16 {
        /// Keys.
        keys: &'a mut [u16],
        /// Values.
        values: &'a mut [u16],
    },
    /// Single precision.
    F32 {
        /// Keys.
        keys: &'a mut [f32],
        /// Values.
        values: &'a mut [f32],
    },
    /// Blocks of 32.
    Q8_0 {
        /// Keys.
        keys: &'a mut [Q8Block],
        /// Values.
        values: &'a mut [Q8Block],
    },
}

impl KvShape {
    /// Cells of one head at one position: values, or blocks of values.
    pub fn cells(&self) -> usize {
        match self.kv_type {
            KvType::F16 => u16::per_head(self.head_dim),
            KvType::F32 => f32::per_head(self.head_dim),
            KvType::Q8_0 => Q8Block::per_head(self.head_dim),
        }
    }

    /// Cells (of keys alone) of one head.
    fn head_len(&self) -> usize {
        self.context.saturating_mul(self.cells())
    }

    /// Bytes of the keys and values of one head and `n_pos` positions.
    pub fn head_bytes(&self, n_pos: usize) -> usize {
        2 * n_pos * self.kv_type.head_bytes(self.head_dim)
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> u128 {
        let sizes = [
            self.n_slots,
            self.context,
            self.n_layer,
            self.n_head_kv,
            self.kv_type.head_bytes(self.head_dim),
        ];
        2 * sizes.iter().map(|&size| size as u128).product::<u128>()
    }
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// When the system refuses the address space.
    pub fn new(shape: KvShape) -> Result<Self, KvError> {
        let error = || KvError {
            n_slots: shape.n_slots,
            context: shape.context,
            bytes: shape.bytes(),
        };
        if shape.bytes() > isize::MAX as u128 {
            return Err(error());
        }
        let len = shape.n_layer * shape.n_head_kv * shape.head_len();
        let slots = (0..shape.n_slots).map(|_| {
            Some(Slot {
                cells: Cells::new(shape.kv_type, len)?,
                tokens: Vec::with_capacity(shape.context),
            })
        });
        let slots = slots.collect::<Option<Vec<_>>>().ok_or_else(error)?;
        Ok(KvCache { shape, slots })
    }

    /// Its sizes.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Tokens whose keys and values the slot holds, in order; the index is the position.
    pub fn tokens(&self, slot: usize) -> &[u32] {
        &self.slots[slot].tokens
    }

    /// Forgets all but the first `len` tokens of a slot.
    pub fn truncate(&mut self, slot: usize, len: usize) {
        self.slots[slot].tokens.truncate(len);
    }

    /// Notes that a forward pass has written the next position of a slot.
    ///
    /// # Panics
    /// When the slot is full.
    pub fn push(&mut self, slot: usize, token: u32) {
        let tokens = &mut self.slots[slot].tokens;
        assert!(tokens.len() < self.shape.context, "slot {slot} is full");
        tokens.push(token);
    }

    /// How many tokens `tokens` and the slot have in common at the start.
    pub fn common_prefix(&self, slot: usize, tokens: &[u32]) -> usize {
        let cached = &self.slots[slot].tokens;
        cached
            .iter()
            .zip(tokens)
            .take_while(|(a, b)| a == b)
            .count()
    }

    /// The first `n_pos` positions of a head.
    pub fn head(&self, layer: usize, slot: usize, head: usize, n_pos: usize) -> HeadCells<'_> {
        let start = (layer * self.shape.n_head_kv + head) * self.shape.head_len();
        let range = start..start + n_pos * self.shape.cells();
        match &self.slots[slot].cells {
            Cells::F16 { keys, values } => HeadCells::F16 {
                keys: &keys[range.clone()],
                values: &values[range],
            },
            Cells::F32 { keys, values } => HeadCells::F32 {
                keys: &keys[range.clone()],
                values: &values[range],
            },
            Cells::Q8_0 { keys, values } => HeadCells::Q8_0 {
                keys: &keys[range.clone()],
                values: &values[range],
            },
        }
    }

    /// Puts the bytes of [`HeadCells::write_to`] into the first `n_pos` positions of a head.
    ///
    /// # Panics
    /// When there are not [`KvShape::head_bytes`] of them.
    pub fn fill_head(
        &mut self,
        layer: usize,
        slot: usize,
        head: usize,
        n_pos: usize,
        bytes: &[u8],
    ) {
        assert_eq!(bytes.len(), self.shape.head_bytes(n_pos), "bytes of a head");
        let (head_len, n) = (self.shape.head_len(), n_pos * self.shape.cells());
        let start = (layer * self.shape.n_head_kv + head) * head_len;
        let cells = &mut self.slots[slot].cells;
        let mut heads = cells.heads_mut(start..start + head_len, head_len);
        if let Some(mut cells) = heads.next() {
            cells.read_from(n, bytes);
        }
    }

    /// All heads of a layer, slot by slot, each to be written by whoever gets it.
    pub fn layer_mut(&mut self, layer: usize) -> impl Iterator<Item = HeadWriter<'_>> + Send {
        let head_len = self.shape.head_len();
        let layer_len = head_len * self.shape.n_head_kv;
        let range = layer * layer_len..(layer + 1) * layer_len;
        let slots = self.slots.iter_mut().enumerate();
        slots.flat_map(move |(slot, it)| {
            let heads = it.cells.heads_mut(range.clone(), head_len).enumerate();
            heads.map(move |(head, cells)| HeadWriter { slot, head, cells })
        })
    }
}

impl HeadCells<'_> {
    /// Appends keys, then values, little-endian.
    pub fn write_to(&self, bytes: &mut Vec<u8>) {
        match self {
            HeadCells::F16 { keys, values } => {
                let halves = keys.iter().chain(*values);
                bytes.extend(halves.flat_map(|half| half.to_le_bytes()));
            }
            HeadCells::F32 { keys, values } => {
                let words = keys.iter().chain(*values);
                bytes.extend(words.flat_map(|word| word.to_le_bytes()));
            }
            HeadCells::Q8_0 { keys, values } => {
                bytes.extend(keys.as_flattened());
                bytes.extend(values.as_flattened());
            }
        }
    }
}

impl HeadCellsMut<'_> {
    /// Takes what [`HeadCells::write_to`] gave for `n` cells of keys and of values.
    fn read_from(&mut self, n: usize, bytes: &[u8]) {
        match self {
            HeadCellsMut::F16 { keys, values } => {
                let cells = keys[..n].iter_mut().chain(&mut values[..n]);
                let halves = bytes.as_chunks::<2>().0.iter();
                cells
                    .zip(halves)
                    .for_each(|(cell, half)| *cell = u16::from_le_bytes(*half));
            }
            HeadCellsMut::F32 { keys, values } => {
                let cells = keys[..n].iter_mut().chain(&mut values[..n]);
                let words = bytes.as_chunks::<4>().0.iter();
                cells
                    .zip(words)
                    .for_each(|(cell, word)| *cell = f32::from_le_bytes(*word));
            }
            HeadCellsMut::Q8_0 { keys, values } => {
                let cells = keys[..n].iter_mut().chain(&mut values[..n]);
                let blocks = bytes.as_chunks::<34>().0.iter();
                cells.zip(blocks).for_each(|(cell, block)| *cell = *block);
            }
        }
    }
}

impl Cells {
    fn new(kv_type: KvType, len: usize) -> Option<Self> {
        Some(match kv_type {
            KvType::F16 => Cells::F16 {
                keys: zeroed(len)?,
                values: zeroed(len)?,
            },
            KvType::F32 => Cells::F32 {
                keys: zeroed(len)?,
                values: zeroed(len)?,
            },
            KvType::Q8_0 => Cells::Q8_0 {
                keys: zeroed(len)?,
                values: zeroed(len)?,
            },
        })
    }

    fn heads_mut(
        &mut self,
        range: Range<usize>,
        head_len: usize,
    ) -> impl Iterator<Item = HeadCellsMut<'_>> + Send {
        let (mut half, mut single, mut blocks) = (None, None, None);
        match self {
            Cells::F16 { keys, values } => half = Some(pairs(keys, values, range, head_len)),
            Cells::F32 { keys, values } => single = Some(pairs(keys, values, range, head_len)),
            Cells::Q8_0 { keys, values } => blocks = Some(pairs(keys, values, range, head_len)),
        }
        let half = half.into_iter().flatten();
        let half = half.map(|(keys, values)| HeadCellsMut::F16 { keys, values });
        let single = single.into_iter().flatten();
        let single = single.map(|(keys, values)| HeadCellsMut::F32 { keys, values });
        let blocks = blocks.into_iter().flatten();
        let blocks = blocks.map(|(keys, values)| HeadCellsMut::Q8_0 { keys, values });
        half.chain(single).chain(blocks)
    }
}

fn pairs<'a, T: Number>(
    keys: &'a mut [T],
    values: &'a mut [T],
    range: Range<usize>,
    head_len: usize,
) -> impl Iterator<Item = (&'a mut [T], &'a mut [T])> + Send {
    let keys = keys[range.clone()].chunks_exact_mut(head_len);
    keys.zip(values[range].chunks_exact_mut(head_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kv_type: KvType) -> KvShape {
        KvShape {
            n_slots: 2,
            context: 5,
            n_layer: 3,
            n_head_kv: 2,
            head_dim: 4,
            kv_type,
        }
    }

    #[test]
    fn every_head_has_its_own_place() {
        for kv_type in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let mut cache = KvCache::new(shape(kv_type)).unwrap();
            for layer in 0..3 {
                let mut seen = Vec::new();
                for writer in cache.layer_mut(layer) {
                    let mark = (100 * layer + 10 * writer.slot + writer.head + 1) as u16;
                    seen.push((writer.slot, writer.head));
                    match writer.cells {
                        HeadCellsMut::F16 { keys, values } => {
                            keys.fill(mark);
                            values.fill(mark + 1000);
                        }
                        HeadCellsMut::F32 { keys, values } => {
                            keys.fill(f32::from(mark));
                            values.fill(f32::from(mark + 1000));
                        }
                        HeadCellsMut::Q8_0 { keys, values } => {
                            assert_eq!((keys.len(), values.len()), (5, 5));
                            keys.fill([mark as u8; 34]);
                            values.fill([mark as u8 + 1; 34]);
                        }
                    }
                }
                assert_eq!(seen, [(0, 0), (0, 1), (1, 0), (1, 1)]);
            }
            for (layer, slot, head) in [(0, 0, 0), (0, 1, 1), (2, 0, 1), (2, 1, 0)] {
                let mark = (100 * layer + 10 * slot + head + 1) as u16;
                match cache.head(layer, slot, head, 3) {
                    HeadCells::F16 { keys, values } => {
                        assert_eq!((keys, values), (&[mark; 12][..], &[mark + 1000; 12][..]));
                    }
                    HeadCells::F32 { keys, values } => {
                        assert_eq!(keys, [f32::from(mark); 12]);
                        assert_eq!(values, [f32::from(mark + 1000); 12]);
                    }
                    HeadCells::Q8_0 { keys, values } => {
                        assert_eq!(keys, [[mark as u8; 34]; 3]);
                        assert_eq!(values, [[mark as u8 + 1; 34]; 3]);
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_are_remembered_per_slot() {
        let mut cache = KvCache::new(shape(KvType::F16)).unwrap();
        for token in [7, 8, 9] {
            cache.push(1, token);
        }
        assert_eq!(cache.tokens(1), [7, 8, 9]);
        assert_eq!(cache.common_prefix(1, &[7, 8, 1, 9]), 2);
        assert_eq!(cache.common_prefix(0, &[7]), 0);
        cache.truncate(1, 1);
        assert_eq!(cache.tokens(1), [7]);
    }

    #[test]
    fn a_cache_beyond_the_address_space_is_an_error() {
        let huge = KvShape {
            context: usize::MAX / 4,
            ..shape(KvType::F32)
        };
        assert!(
            KvCache::new(huge)
                .err()
                .unwrap()
                .to_string()
                .starts_with("no memory for a KV cache of 2 slots")
        );
    }
}
