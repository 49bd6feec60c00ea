//! Random numbers and random weights: the same bytes for the same seed on every machine.

use crate::gguf::TensorType;
use bitnet_kernels::{f32_to_bf16, f32_to_f16};

/// Share of zeros among ternary weights, as in BitNet b1.58 2B-4T.
pub(crate) const ZEROS: f64 = 0.42;
/// Random tables have this many entries: 12 random bits choose one.
const ENTRIES: usize = 4096;
const PER_WORD: usize = 5;

/// xoshiro256++ (Blackman and Vigna, 2018), seeded by splitmix64.
pub(crate) struct Rng([u64; 4]);

impl Rng {
    pub(crate) fn new(seed: u64, stream: u64) -> Rng {
        let mut state = seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03);
        Rng(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    pub(crate) fn u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// `out[i]` = a random entry of the table.
    fn draw<V: Copy, const N: usize>(&mut self, table: &[V], out: &mut [[V; N]]) {
        let table: &[V; ENTRIES] = table.try_into().expect("a table of 4096 entries");
        for chunk in out.as_flattened_mut().chunks_mut(PER_WORD) {
            let mut word = self.u64();
            for v in chunk {
                *v = table[word as usize % ENTRIES];
                word >>= 12;
            }
        }
    }
}

/// How a tensor's weights are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill {
    /// -scale, 0 or +scale.
    Ternary { scale: f32 },
    /// Normal with mean 0.
    Normal { sigma: f32 },
    /// Uniform between 0.8 and 1.2 of a value.
    Around { mean: f32 },
}

/// Makes a tensor's bytes, some blocks at a time.
pub(crate) struct Weights {
    ty: TensorType,
    fill: Fill,
    rng: Rng,
    bytes_table: Vec<u8>,
    half_table: Vec<u8>,
    words: Vec<[u8; 4]>,
}

impl Weights {
    /// # Panics
    /// When there is no way to draw this type.
    pub(crate) fn new(ty: TensorType, fill: Fill, rng: Rng) -> Weights {
        let mut weights = Weights {
            ty,
            fill,
            rng,
            bytes_table: Vec::new(),
            half_table: Vec::new(),
            words: Vec::new(),
        };
        match (ty, fill) {
            (TensorType::I2S | TensorType::TQ2_0, Fill::Ternary { .. }) => {
                weights.bytes_table = ternary_table(4, |trits| {
                    trits.iter().fold(0, |byte, &trit| byte << 2 | trit)
                });
            }
            (TensorType::TQ1_0, Fill::Ternary { .. }) => {
                weights.bytes_table = ternary_table(5, base_3);
                weights.half_table = ternary_table(4, |trits| {
                    base_3(&[trits[0], trits[1], trits[2], trits[3], 0])
                });
            }
            (TensorType::F32 | TensorType::F16 | TensorType::BF16, Fill::Normal { sigma }) => {
                weights.words = quantiles().map(|q| word(ty, q * sigma)).collect();
            }
            (TensorType::Q8_0, Fill::Normal { .. }) => {
                weights.bytes_table = quantiles()
                    .map(|q| (q * 42.0).round().clamp(-127.0, 127.0) as i8 as u8)
                    .collect();
            }
            (TensorType::Q6K | TensorType::Q4_0, Fill::Normal { .. }) => {
                weights.bytes_table = (0..ENTRIES).map(|i| i as u8).collect();
            }
            (TensorType::F32, Fill::Around { .. }) => {}
            _ => panic!("no random weights of type {ty} for {fill:?}"),
        }
        weights
    }

    /// Fills whole blocks: `out` is a multiple of the type's block bytes. I2_S: codes only, the scale is [`Weights::tail`].
    pub(crate) fn next(&mut self, out: &mut [u8]) {
        match (self.ty, self.fill) {
            (TensorType::F32, Fill::Around { mean }) => {
                for v in out.as_chunks_mut::<4>().0 {
                    *v = (mean * (0.8 + 0.4 * self.rng.unit())).to_le_bytes();
                }
            }
            (TensorType::I2S, _) => self.rng.draw(&self.bytes_table, out.as_chunks_mut::<1>().0),
            (TensorType::F32, _) => self.rng.draw_words(&self.words, out.as_chunks_mut::<4>().0),
            (TensorType::F16 | TensorType::BF16, _) => {
                for pair in out.as_chunks_mut::<4>().0.iter_mut() {
                    let mut bits = self.rng.u64() as usize;
                    for half in pair.as_chunks_mut::<2>().0 {
                        let [low, high, ..] = self.words[bits % ENTRIES];
                        *half = [low, high];
                        bits >>= 12;
                    }
                }
            }
            (ty, _) => {
                let (_, block) = ty.block().expect("a block type");
                out.chunks_exact_mut(block as usize)
                    .for_each(|block| self.block(block));
            }
        }
    }

    /// What follows the last block.
    pub(crate) fn tail(&self) -> Vec<u8> {
        let mut tail = Vec::new();
        if let (TensorType::I2S, Fill::Ternary { scale }) = (self.ty, self.fill) {
            tail.extend_from_slice(&scale.to_le_bytes());
            tail.resize(32, 0);
        }
        tail
    }

    fn block(&mut self, block: &mut [u8]) {
        let sigma = match self.fill {
            Fill::Ternary { scale } => scale,
            Fill::Normal { sigma } => sigma,
            Fill::Around { mean } => mean,
        };
        let f16 = |v: f32| f32_to_f16(v).to_le_bytes();
        self.rng
            .draw(&self.bytes_table, block.as_chunks_mut::<1>().0);
        match self.ty {
            TensorType::TQ2_0 => block[64..66].copy_from_slice(&f16(sigma)),
            TensorType::TQ1_0 => {
                self.rng
                    .draw(&self.half_table, block[48..52].as_chunks_mut::<1>().0);
                block[52..54].copy_from_slice(&f16(sigma));
            }
            TensorType::Q8_0 => block[..2].copy_from_slice(&f16(sigma / 42.0)),
            // Uniform codes of 16 and 64 steps have standard deviations of 4.6 and 18.5 steps.
            TensorType::Q4_0 => block[..2].copy_from_slice(&f16(sigma / 4.6)),
            TensorType::Q6K => {
                block[192..208]
                    .iter_mut()
                    .for_each(|scale| *scale = 20 + *scale % 40);
                block[208..210].copy_from_slice(&f16(sigma / (18.5 * 40.0)));
            }
            ty => unreachable!("{ty} is not drawn in blocks"),
        }
    }
}

impl Rng {
    fn draw_words(&mut self, table: &[[u8; 4]], out: &mut [[u8; 4]]) {
        for chunk in out.chunks_mut(PER_WORD) {
            let mut word = self.u64() as usize;
            for v in chunk {
                *v = table[word % ENTRIES];
                word >>= 12;
            }
        }
    }
}

/// A number in a float type; two bytes of padding for the 16-bit ones.
fn word(ty: TensorType, v: f32) -> [u8; 4] {
    let half = |bits: u16| {
        let [low, high] = bits.to_le_bytes();
        [low, high, 0, 0]
    };
    match ty {
        TensorType::F16 => half(f32_to_f16(v)),
        TensorType::BF16 => half(f32_to_bf16(v)),
        _ => v.to_le_bytes(),
    }
}

/// TQ1_0's byte of five trits, first trit most significant.
fn base_3(trits: &[u8]) -> u8 {
    let v = trits.iter().fold(0u32, |v, &trit| v * 3 + u32::from(trit));
    (v * 256).div_ceil(243) as u8
}

/// 4096 bytes of `n` trits (0, 1, 2 with the probabilities of -1, 0, +1), each byte as often as its probability says.
fn ternary_table(n: u32, pack: impl Fn(&[u8]) -> u8) -> Vec<u8> {
    let side = (1.0 - ZEROS) / 2.0;
    let mut table = Vec::with_capacity(ENTRIES);
    let mut sum = 0.0;
    for pattern in 0..3u32.pow(n) {
        let trits: Vec<u8> = (0..n).map(|i| (pattern / 3u32.pow(i) % 3) as u8).collect();
        sum += trits
            .iter()
            .map(|&t| if t == 1 { ZEROS } else { side })
            .product::<f64>();
        table.resize((sum * ENTRIES as f64).round() as usize, pack(&trits));
    }
    table.resize(ENTRIES, 0);
    table
}

/// 4096 points of equal probability of the standard normal distribution, ascending (Acklam's rational approximation of
/// its inverse).
fn quantiles() -> impl Iterator<Item = f32> {
    (0..ENTRIES).map(|i| inverse_normal((i as f64 + 0.5) / ENTRIES as f64) as f32)
}

fn inverse_normal(p: f64) -> f64 {
    const A: [f64; 6] = [
        -39.696_830_286_653_76,
        220.946_098_424_520_5,
        -275.928_510_446_968_7,
        138.357_751_867_269,
        -30.664_798_066_147_16,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -54.476_098_798_224_06,
        161.585_836_858_040_9,
        -155.698_979_859_886_6,
        66.801_311_887_719_72,
        -13.280_681_552_885_72,
        1.0,
    ];
    const C: [f64; 6] = [
        -0.007_784_894_002_430_293,
        -0.322_396_458_041_136_5,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        0.007_784_695_709_041_462,
        0.322_467_129_070_039_8,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    let polynomial = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    if p > 0.5 {
        return -inverse_normal(1.0 - p);
    }
    if p < 0.02425 {
        let q = (-2.0 * p.ln()).sqrt();
        return polynomial(&C, q) / polynomial(&D, q);
    }
    let q = p - 0.5;
    polynomial(&A, q * q) * q / polynomial(&B, q * q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantiles_have_unit_variance() {
        let q: Vec<f32> = quantiles().collect();
        assert!(q.windows(2).all(|pair| pair[0] < pair[1]));
        let variance = q.iter().map(|q| q * q).sum::<f32>() / ENTRIES as f32;
        assert!((variance - 1.0).abs() < 0.01, "{variance}");
        assert!((q[ENTRIES / 2 + 1398] - 1.0).abs() < 0.01);
    }

    #[test]
    fn ternary_tables_have_the_share_of_zeros() {
        let table = ternary_table(4, |trits| {
            trits.iter().fold(0, |byte, &trit| byte << 2 | trit)
        });
        assert_eq!(table.len(), ENTRIES);
        let zeros = table
            .iter()
            .flat_map(|b| (0..4).map(move |i| b >> (2 * i) & 3))
            .filter(|&c| c == 1)
            .count();
        assert!(
            (zeros as f64 / (4 * ENTRIES) as f64 - ZEROS).abs() < 0.005,
            "{zeros}"
        );
        assert!(table.iter().all(|b| (0..4).all(|i| b >> (2 * i) & 3 < 3)));
    }
}
