//! From the vectors of a text's tokens to its embedding, and the embedding to a length.
//!
//! Vectors are taken in the order of positions, so the sums do not depend on how the text was cut into steps.

use crate::protocol::Pooling;

/// Gathers the vectors of one text.
#[derive(Debug)]
pub struct Pooler {
    pooling: Pooling,
    n_tokens: usize,
    n_seen: usize,
    vectors: Vec<Vec<f32>>,
}

impl Pooler {
    /// For a text of `n_tokens`.
    pub fn new(pooling: Pooling, n_tokens: usize) -> Self {
        Pooler {
            pooling,
            n_tokens,
            n_seen: 0,
            vectors: Vec::new(),
        }
    }

    /// Whether the next token's vector matters.
    pub fn needs_next(&self) -> bool {
        match self.pooling {
            Pooling::None | Pooling::Mean => true,
            Pooling::Cls => self.n_seen == 0,
            Pooling::Last => self.n_seen + 1 == self.n_tokens,
        }
    }

    /// The next token comes without its vector.
    pub fn skip(&mut self) {
        self.n_seen += 1;
    }

    /// The next token's vector.
    pub fn take(&mut self, vector: &[f32]) {
        self.n_seen += 1;
        match (self.pooling, self.vectors.first_mut()) {
            (Pooling::Mean, Some(sum)) => {
                sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x);
            }
            _ => self.vectors.push(vector.to_vec()),
        }
    }

    /// One vector, or with [`Pooling::None`] one per token taken since the last call.
    pub fn pooled(&mut self) -> Vec<Vec<f32>> {
        let mut vectors = std::mem::take(&mut self.vectors);
        if self.pooling == Pooling::Mean {
            let n = self.n_seen as f32;
            vectors.iter_mut().flatten().for_each(|x| *x /= n);
        }
        vectors
    }

    /// Numbers that wait in [`Pooler::pooled`] and can be taken before the end.
    pub fn n_waiting(&self) -> usize {
        match self.pooling {
            Pooling::None => self.vectors.iter().map(Vec::len).sum(),
            _ => 0,
        }
    }
}

/// Scales a vector as llama-server's `embd_normalize` says: -1 not at all, 0 to a largest number of 32760, 1 to a sum of
/// absolute values of 1, 2 to a Euclidean length of 1, p to a p-norm of 1. A vector of zeros stays one.
pub fn normalize(vector: &mut [f32], kind: i32) {
    let numbers = vector.iter().map(|x| f64::from(x.abs()));
    let norm = match kind {
        ..0 => return,
        0 => numbers.fold(0.0, f64::max) / 32760.0,
        2 => numbers.map(|x| x * x).sum::<f64>().sqrt(),
        p => numbers
            .map(|x| x.powi(p))
            .sum::<f64>()
            .powf(1.0 / f64::from(p)),
    };
    let factor = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
    vector.iter_mut().for_each(|x| *x *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pooling: Pooling) -> Vec<Vec<f32>> {
        let mut pooler = Pooler::new(pooling, 3);
        for vector in [[1.0, 2.0], [3.0, -4.0], [5.0, 5.0]] {
            match pooler.needs_next() {
                true => pooler.take(&vector),
                false => pooler.skip(),
            }
        }
        pooler.pooled()
    }

    #[test]
    fn each_pooling_keeps_its_share() {
        let all = vec![vec![1.0, 2.0], vec![3.0, -4.0], vec![5.0, 5.0]];
        assert_eq!(pool(Pooling::None), all);
        assert_eq!(pool(Pooling::Mean), [[3.0, 1.0]]);
        assert_eq!(pool(Pooling::Cls), [[1.0, 2.0]]);
        assert_eq!(pool(Pooling::Last), [[5.0, 5.0]]);
    }

    #[test]
    fn vectors_of_tokens_can_be_taken_in_parts() {
        let mut pooler = Pooler::new(Pooling::None, 3);
        pooler.take(&[1.0, 2.0]);
        pooler.take(&[3.0, 4.0]);
        assert_eq!(pooler.n_waiting(), 4);
        assert_eq!(pooler.pooled().len(), 2);
        pooler.take(&[5.0, 6.0]);
        assert_eq!(pooler.pooled(), [[5.0, 6.0]]);
    }

    #[test]
    fn normalised_as_llama_server_does() {
        let scaled = |kind| {
            let mut vector = [3.0, -4.0];
            normalize(&mut vector, kind);
            vector
        };
        assert_eq!(scaled(-1), [3.0, -4.0]);
        assert_eq!(scaled(0), [24570.0, -32760.0]);
        for (kind, expected) in [(1, [3.0 / 7.0, -4.0 / 7.0]), (2, [0.6, -0.8])] {
            let differences = scaled(kind).into_iter().zip(expected);
            assert!(
                differences
                    .map(|(a, b): (f32, f32)| (a - b).abs())
                    .sum::<f32>()
                    < 1e-6
            );
        }
        let cubic = scaled(3);
        assert!((cubic[0].powi(3) - cubic[1].powi(3) - 1.0).abs() < 1e-6);
        let mut zeros = [0.0; 2];
        normalize(&mut zeros, 2);
        assert_eq!(zeros, [0.0; 2]);
    }
}
