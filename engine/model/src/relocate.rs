//! Moves a model's ternary matrices from where they were loaded into huge pages, one matrix at a time, while it is used.
//!
//! A decode step reads all of them once; on pages of 4 KB much of that time goes to the page tables. The numbers stay the
//! same, so nothing computed before, during or after the move differs. The pages they come from are given back.

use std::ops::Range;
use std::time::{Duration, Instant};

use bitnet_kernels::SharedBytes;

use crate::facts::Linear;
use crate::os::{self, FileMap};
use crate::pool::Pool;
use crate::weights::Weights;

/// Matrices share areas of at least this many bytes: at most one huge page of each is wasted, and no more than this
/// is in memory twice.
const AREA_BYTES: usize = 64 << 20;
/// Bytes that a worker copies before it asks for others.
const PIECE_BYTES: usize = 256 << 10;
/// Below this many bytes of weights a move is not worth it: their page tables fit the caches.
pub const WORTH_BYTES: u64 = 32 << 20;
/// Where a matrix begins in its area.
const ALIGNMENT: usize = 64;

/// A move that is not finished.
pub struct Relocation {
    /// The file that the matrices may lie in.
    map: Option<FileMap>,
    /// Matrices in the order of their use; those before `next` are in an area.
    matrices: Vec<(usize, Linear)>,
    next: usize,
    area_bytes: usize,
    area: Option<Area>,
}

/// Memory for some matrices, part of them copied.
struct Area {
    bytes: Vec<u8>,
    /// Where each goes.
    places: Vec<((usize, Linear), Range<usize>)>,
    n_copied: usize,
}

impl Relocation {
    /// Nothing is moved yet. `map` is the file that `weights` came from, if they lie in one.
    pub fn new(map: Option<FileMap>, weights: &Weights) -> Self {
        let layers = 0..weights.layers.len();
        let matrices = layers.flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
        Relocation {
            map,
            matrices: matrices.collect(),
            next: 0,
            area_bytes: AREA_BYTES,
            area: None,
        }
    }

    /// Goes on for about `time`, by one matrix at least; says whether the move has ended, at its goal or for want of memory.
    pub fn work(&mut self, weights: &mut Weights, pool: &mut Pool, time: Duration) -> bool {
        let began = Instant::now();
        loop {
            let Some(mut area) = self.area.take().or_else(|| self.next_area(weights)) else {
                return true;
            };
            area.copy_one(weights, pool);
            if area.n_copied < area.places.len() {
                self.area = Some(area);
            } else {
                self.move_in(area, weights);
            }
            if began.elapsed() >= time {
                return self.area.is_none() && self.next == self.matrices.len();
            }
        }
    }

    /// Memory for the next matrices; `None` when there are no more, or no memory.
    fn next_area(&mut self, weights: &Weights) -> Option<Area> {
        let mut places = Vec::new();
        let mut len = 0;
        for &matrix in &self.matrices[self.next..] {
            if len >= self.area_bytes {
                break;
            }
            let end = len + bytes_of(weights, matrix).len();
            places.push((matrix, len..end));
            len = end.next_multiple_of(ALIGNMENT);
        }
        if places.is_empty() {
            return None;
        }
        let Some(bytes) = os::zeroed_huge(len) else {
            let mb = len >> 20;
            tracing::warn!(
                mb,
                "no memory for huge pages, the weights stay in the mapped file"
            );
            return None;
        };
        self.next += places.len();
        Some(Area {
            bytes,
            places,
            n_copied: 0,
        })
    }

    /// The matrices of an area are used from there.
    fn move_in(&self, area: Area, weights: &mut Weights) {
        let bytes = SharedBytes::new(area.bytes);
        for ((layer, linear), place) in area.places {
            let matrix = &mut weights.layers[layer].projection_mut(linear).matrix;
            let copy = bytes
                .slice(place)
                .expect("areas are as long as their places");
            if let Some(map) = &self.map {
                map.release(matrix.bytes());
            }
            *matrix = matrix.moved_to(copy);
        }
    }
}

impl Area {
    /// Copies the next matrix, all workers together.
    fn copy_one(&mut self, weights: &Weights, pool: &mut Pool) {
        let (matrix, place) = &self.places[self.n_copied];
        let from = bytes_of(weights, *matrix);
        let to = &mut self.bytes[place.clone()];
        let pieces = from.chunks(PIECE_BYTES).zip(to.chunks_mut(PIECE_BYTES));
        pool.for_each(pool.size(), pieces, |_, (from, to)| {
            to.copy_from_slice(from)
        });
        self.n_copied += 1;
    }
}

fn bytes_of(weights: &Weights, (layer, linear): (usize, Linear)) -> &SharedBytes {
    weights.layers[layer].projection(linear).matrix.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::ModelFacts;
    use crate::gguf::Gguf;
    use crate::protocol::Overrides;
    use crate::synth::{self, Shape};
    use bitnet_kernels::Packing;

    /// All weights, each matrix in a row.
    fn contents(weights: &Weights) -> Vec<Vec<u8>> {
        let layers = weights.layers.iter();
        let matrices = layers.flat_map(|layer| Linear::ALL.map(|linear| layer.projection(linear)));
        matrices.map(|it| it.matrix.bytes().to_vec()).collect()
    }

    #[test]
    fn every_matrix_is_moved_and_none_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let shape = Shape::preset("tiny").unwrap();
        synth::write(&shape, 5, &path, &mut |_, _| {}).unwrap();
        for packing in [Packing::I2S, Packing::Tl2] {
            let gguf = Gguf::open(&path).unwrap();
            let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
            let mut weights = Weights::load(&gguf, &facts).unwrap();
            weights.repack(packing, 1).unwrap();
            let before = contents(&weights);
            let home: Vec<_> = weights
                .layers
                .iter()
                .map(|it| it.down.matrix.bytes().as_ptr())
                .collect();
            let mut relocation = Relocation::new(gguf.map().cloned(), &weights);
            relocation.area_bytes = before[0].len() * 3;
            let mut pool = Pool::new(&[0, 0], false).unwrap();
            let mut n_calls = 0;
            while !relocation.work(&mut weights, &mut pool, Duration::from_nanos(1)) {
                assert_eq!(contents(&weights), before, "after {n_calls} calls");
                n_calls += 1;
            }
            assert!(n_calls >= before.len() - 1, "{n_calls} calls");
            assert_eq!(contents(&weights), before);
            let moved = weights
                .layers
                .iter()
                .map(|it| it.down.matrix.bytes().as_ptr());
            assert!(
                moved.zip(&home).all(|(now, then)| now != *then),
                "{packing}"
            );
        }
    }
}
