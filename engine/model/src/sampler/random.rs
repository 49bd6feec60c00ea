//! Random numbers as a function of (seed, position): nothing runs along that a restart could lose.

/// What a number is for. Each use at one position has a number of its own, so that none depends on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The draw from what the chain left.
    Draw = 0,
    /// Whether XTC acts.
    Xtc = 1,
    /// The draw after the grammar refused the first one.
    Redraw = 2,
    /// Whether XTC acts then.
    RedrawXtc = 3,
}

/// A number for one purpose.
pub(super) fn uniform_for(purpose: Purpose, seed: u32, position: u64) -> f64 {
    // Positions are below 2^32: the purposes don't meet.
    uniform(seed, position | (purpose as u64) << 60)
}

/// A number in [0, 1) with 53 random bits, a function of its arguments: the finaliser of splitmix64 (Steele, Lea and Flood
/// 2014) over the seed, then over the result and the position.
pub fn uniform(seed: u32, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let stream = mix(u64::from(seed).wrapping_add(1).wrapping_mul(GOLDEN));
    let bits = mix(stream.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
