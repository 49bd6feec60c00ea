//! The largest of many numbers: found by looking at blocks whose largest is large enough only.

/// Numbers of a block.
const BLOCK: usize = 64;
/// Values that are compared at once.
const PART: usize = 8;

/// The largest of each block of some numbers, for several looks at them.
#[derive(Clone, Default, Debug)]
pub struct Peaks(Vec<f32>);

impl Peaks {
    /// Takes `values`; none of them NaN.
    pub fn find(&mut self, values: &[f32]) {
        self.0.clear();
        self.0.extend(values.chunks(BLOCK).map(largest));
    }

    /// As [`kth_largest`], of the values that were taken.
    pub fn kth_largest(&self, values: &[f32], k: usize, scratch: &mut Vec<f32>) -> Option<f32> {
        kth_of(values, k, scratch, |block, _, floor| self.0[block] > floor)
    }

    /// Hands to `take` the places of the values, the same that were taken, that are at least `least`, ascending; and they themselves.
    pub fn reaching(&self, values: &[f32], least: f32, mut take: impl FnMut(usize, f32)) {
        let blocks = self.0.iter().zip(values.chunks(BLOCK));
        for (first, (_, block)) in (0..)
            .step_by(BLOCK)
            .zip(blocks)
            .filter(|it| *it.1.0 >= least)
        {
            // Without a branch per value.
            let mut left = 0u64;
            for (i, &value) in block.iter().enumerate() {
                left |= u64::from(value >= least) << i;
            }
            while left != 0 {
                let i = left.trailing_zeros() as usize;
                take(first + i, block[i]);
                left &= left - 1;
            }
        }
    }
}

fn largest(block: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (parts, others) = block.as_chunks::<PART>();
    let mut lanes = [f32::NEG_INFINITY; PART];
    for part in parts {
        for (lane, &value) in lanes.iter_mut().zip(part) {
            *lane = larger(*lane, value);
        }
    }
    let all = lanes.iter().chain(others);
    all.fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// The `k`-th largest of `values`; `None` when there are fewer. `scratch` is used as it likes.
pub fn kth_largest(values: &[f32], k: usize, scratch: &mut Vec<f32>) -> Option<f32> {
    kth_of(values, k, scratch, |_, block, floor| largest(block) > floor)
}

/// `exceeds(number, block, floor)`: whether any value of a block does.
fn kth_of(
    values: &[f32],
    k: usize,
    scratch: &mut Vec<f32>,
    exceeds: impl Fn(usize, &[f32], f32) -> bool,
) -> Option<f32> {
    if k == 0 || values.len() < k {
        return None;
    }
    let full = 2 * k + 256;
    scratch.clear();
    let mut floor = f32::NEG_INFINITY;
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    for (number, block) in values.chunks(BLOCK).enumerate() {
        if !exceeds(number, block, floor) {
            continue;
        }
        scratch.extend(block.iter().filter(|&&value| value > floor));
        if scratch.len() >= full {
            scratch.select_nth_unstable_by(k - 1, descending);
            scratch.truncate(k);
            floor = scratch[k - 1];
        }
    }
    (scratch.len() >= k).then(|| *scratch.select_nth_unstable_by(k - 1, descending).1)
}
