//! The screened head against the full one: every row of the true top k is kept, whatever the vectors; every kernel finds the
//! same bounds.

use bitnet_kernels::{
    DenseMatrix, DenseType, Isa, Kernel, Packing, Peaks, Query, Screen, ScreenedHead, SharedBytes,
    f32_to_bf16, f32_to_f16, kth_largest,
};

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Near enough to a normal distribution with variance 1.
    fn gauss(&mut self) -> f32 {
        (0..6).map(|_| self.float()).sum::<f32>() / 2f32.sqrt()
    }
}

/// How the numbers of rows or queries are spread.
#[derive(Clone, Copy, Debug)]
enum Spread {
    Normal,
    Even,
    /// A few numbers are a hundred times as large as the others.
    Peaked,
    /// Sizes from 1e-4 to 1e4.
    Wide,
    /// Most are zero.
    Sparse,
    /// All share a part.
    Shifted,
}

const SPREADS: [Spread; 6] = [
    Spread::Normal,
    Spread::Even,
    Spread::Peaked,
    Spread::Wide,
    Spread::Sparse,
    Spread::Shifted,
];

impl Spread {
    fn number(self, random: &mut Random) -> f32 {
        match self {
            Spread::Normal => random.gauss(),
            Spread::Even => random.float(),
            Spread::Peaked if random.below(100) == 0 => 100.0 * random.gauss(),
            Spread::Peaked => random.gauss(),
            Spread::Wide => random.gauss() * 10f32.powf(4.0 * random.float()),
            Spread::Sparse if random.below(20) > 0 => 0.0,
            Spread::Sparse => random.gauss(),
            Spread::Shifted => random.gauss() + 0.5,
        }
    }

    fn numbers(self, random: &mut Random, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number(random)).collect()
    }
}

fn matrix(ty: DenseType, w: &[f32], cols: usize) -> DenseMatrix {
    let bytes: Vec<u8> = match ty {
        DenseType::F16 => w
            .iter()
            .flat_map(|&w| f32_to_f16(w).to_le_bytes())
            .collect(),
        DenseType::BF16 => w
            .iter()
            .flat_map(|&w| f32_to_bf16(w).to_le_bytes())
            .collect(),
        _ => w.iter().flat_map(|w| w.to_le_bytes()).collect(),
    };
    DenseMatrix::new(SharedBytes::new(bytes), ty, w.len() / cols, cols).unwrap()
}

fn screened(kernel: Kernel, matrix: &DenseMatrix) -> ScreenedHead {
    let bytes = ScreenedHead::plane_bytes(matrix.rows(), matrix.cols());
    let mut head = ScreenedHead::new(matrix.clone(), [vec![0; bytes], vec![0; bytes]]);
    let mut scratch = Vec::new();
    while !head.is_made() {
        head.unmade_rows(1000, 7)
            .for_each(|rows| rows.make(kernel, &mut scratch));
        head.accept(1000);
    }
    head
}

fn logits(kernel: Kernel, matrix: &DenseMatrix, h: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows()];
    kernel.dense_matmul(matrix, 0..matrix.rows(), &[h], &mut [&mut out]);
    out
}

/// Rows that are left, as the engine finds them.
fn candidates(
    kernel: Kernel,
    head: &ScreenedHead,
    screen: Screen,
    h: &[f32],
    k: usize,
) -> Vec<u32> {
    let mut query = Query::default();
    query.set(h);
    assert!(head.can_screen(&query));
    let (mut lower, mut scratch) = (vec![0.0; head.matrix().rows()], Vec::new());
    head.lower_bounds(kernel, screen, 0..lower.len(), &[&query], &mut [&mut lower]);
    let (mut peaks, mut rows, mut bounds) = (Peaks::default(), Vec::new(), Vec::new());
    peaks.find(&lower);
    if screen == Screen::Proven {
        let threshold = peaks.kth_largest(&lower, k, &mut scratch).unwrap();
        head.survivors(
            screen,
            (&lower, &peaks),
            &query,
            threshold,
            (&mut rows, &mut bounds),
        );
        return rows;
    }
    let refine = |rows: &[u32], threshold: f32| {
        let all = rows.iter().map(|&row| {
            let lower = lower[row as usize];
            head.refine(kernel, row as usize, &query, lower, threshold)
        });
        let (lower, trusted): (Vec<f32>, Vec<bool>) =
            all.map(|bound| (bound.lower, bound.trusted)).unzip();
        trusted.into_iter().all(|it| it).then_some(lower)
    };
    let least = peaks.kth_largest(&lower, 2 * k + 16, &mut scratch);
    let mut seeds = Vec::new();
    peaks.reaching(&lower, least.unwrap(), |row, _| seeds.push(row as u32));
    let Some(seeds) = refine(&seeds, f32::NEG_INFINITY) else {
        return candidates(kernel, head, Screen::Proven, h, k);
    };
    let threshold = kth_largest(&seeds, k, &mut scratch).unwrap();
    head.survivors(
        screen,
        (&lower, &peaks),
        &query,
        threshold,
        (&mut rows, &mut bounds),
    );
    let Some(refined) = refine(&rows, threshold) else {
        return candidates(kernel, head, Screen::Proven, h, k);
    };
    let threshold = kth_largest(&refined, k, &mut scratch).unwrap();
    let reaches =
        |(row, lower): &(u32, f32)| lower + head.refined_width(*row as usize, &query) >= threshold;
    let left: Vec<(u32, f32)> = rows.into_iter().zip(refined).filter(reaches).collect();
    let is_likely = left.iter().all(|&(row, lower)| {
        let row = row as usize;
        let mut logit = [0.0];
        kernel.dense_matmul(head.matrix(), row..row + 1, &[h], &mut [&mut logit]);
        head.is_likely(row, &query, lower, logit[0])
    });
    match is_likely {
        true => left.into_iter().map(|(row, _)| row).collect(),
        false => candidates(kernel, head, Screen::Proven, h, k),
    }
}

/// The k best rows: higher logit first, lower row among equals.
fn best(logits: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    order.select_nth_unstable_by(k - 1, better);
    order.truncate(k);
    order
}

fn misses(found: &[u32], wanted: &[u32]) -> usize {
    assert!(found.is_sorted());
    wanted
        .iter()
        .filter(|row| found.binary_search(row).is_err())
        .count()
}

/// A query of its own, or one near a row, so that this row stands out.
fn query(random: &mut Random, spread: Spread, w: &[f32], cols: usize) -> Vec<f32> {
    let mut h = spread.numbers(random, cols);
    if random.below(2) == 0 {
        let row = random.below(w.len() / cols);
        for (h, w) in h.iter_mut().zip(&w[row * cols..]) {
            *h = 0.3 * *h + w;
        }
    }
    h
}

/// Row decisions of each mode: a million, or as many as `SCREEN_DECISIONS` says.
fn decisions_wanted() -> usize {
    let wanted = std::env::var("SCREEN_DECISIONS").ok();
    wanted.map_or(1_000_000, |text| {
        text.parse().expect("a number of decisions")
    })
}

#[test]
fn no_row_of_the_top_k_is_missed() {
    const ROWS: usize = 8192;
    let kernel = Kernel::best();
    let (mut decisions, mut missed, mut kept) = ([0usize; 2], [0usize; 2], [0usize; 2]);
    let types = [DenseType::F16, DenseType::BF16, DenseType::F32];
    let cases = SPREADS
        .into_iter()
        .flat_map(|rows| types.map(|ty| (rows, ty)));
    let per_case = decisions_wanted().div_ceil(SPREADS.len() * types.len());
    for (seed, (rows, ty)) in (0x5eed_0100..).zip(cases) {
        let cols = match ty {
            DenseType::F16 => 320,
            DenseType::BF16 => 257,
            _ => 640,
        };
        println!("seed {seed:#x}, rows {rows:?}, {ty} of {cols}");
        let mut random = Random(seed);
        let mut w = rows.numbers(&mut random, ROWS * cols);
        // Equal rows: the lower one is the better.
        w.copy_within(..100 * cols, (ROWS - 100) * cols);
        let matrix = matrix(ty, &w, cols);
        let head = screened(kernel, &matrix);
        let kinds = SPREADS.into_iter().zip([1, 40, 40, 40, 300, 1000]).cycle();
        for (spread, k) in kinds.take(per_case.div_ceil(ROWS)) {
            let h = query(&mut random, spread, &w, cols);
            let wanted = best(&logits(kernel, &matrix, &h), k);
            for (mode, screen) in [Screen::Exact, Screen::Proven].into_iter().enumerate() {
                let found = candidates(kernel, &head, screen, &h, k);
                decisions[mode] += ROWS;
                missed[mode] += misses(&found, &wanted);
                kept[mode] += found.len();
            }
        }
    }
    println!("{decisions:?} decisions, {missed:?} misses, {kept:?} rows kept");
    assert!(decisions[0] >= decisions_wanted());
    assert_eq!(missed, [0, 0]);
}

/// Rows whose high plane says nothing and whose low plane says all, with queries along them; and queries along the rest that
/// both planes leave.
#[test]
fn proven_holds_against_chosen_rows_and_queries() {
    const ROWS: usize = 4096;
    const COLS: usize = 512;
    let kernel = Kernel::best();
    let mut random = Random(0x5eed_0200);
    let sign = |random: &mut Random| if random.next() >> 63 == 0 { 1.0 } else { -1.0 };
    let h: Vec<f32> = (0..COLS).map(|_| sign(&mut random)).collect();
    let mut w = Spread::Normal.numbers(&mut random, ROWS * COLS);
    for row in [3, 77, 4000] {
        let w = &mut w[row * COLS..][..COLS];
        for (w, h) in w.iter_mut().zip(&h) {
            *w = 7.45 * h;
        }
        w[random.below(COLS)] = 119.0;
    }
    let matrix = matrix(DenseType::F32, &w, COLS);
    let head = screened(kernel, &matrix);
    let rest = |row: usize| -> Vec<f32> {
        let w = &w[row * COLS..][..COLS];
        let scale = w.iter().fold(0f32, |max, w| max.max(w.abs())) / 119.0;
        w.iter()
            .map(|w| w - scale * (w / scale).round_ties_even())
            .collect()
    };
    let mut queries = vec![h];
    queries.extend((0..50).map(|_| rest(random.below(ROWS))));
    for (i, h) in queries.iter().enumerate() {
        for k in [1, 3, 40] {
            let wanted = best(&logits(kernel, &matrix, h), k);
            let found = candidates(kernel, &head, Screen::Proven, h, k);
            assert_eq!(misses(&found, &wanted), 0, "query {i}, k {k}");
        }
    }
}

#[test]
fn few_rows_are_left_of_many() {
    const ROWS: usize = 20_000;
    const COLS: usize = 2560;
    let kernel = Kernel::best();
    let mut random = Random(0x5eed_0300);
    let w = Spread::Normal.numbers(&mut random, ROWS * COLS);
    let head = screened(kernel, &matrix(DenseType::F16, &w, COLS));
    for _ in 0..5 {
        let h = Spread::Normal.numbers(&mut random, COLS);
        for screen in [Screen::Exact, Screen::Proven] {
            let n = candidates(kernel, &head, screen, &h, 40).len();
            assert!((40..ROWS / 20).contains(&n), "{n} rows by {screen:?}");
        }
    }
}

#[test]
fn every_kernel_finds_the_same_bounds() {
    const ROWS: usize = 130;
    let scalar = Kernel::new(Packing::I2S, Isa::Scalar).unwrap();
    for (seed, cols) in (0x5eed_0400..).zip([1, 31, 64, 65, 256, 320, 2560, 8192]) {
        for spread in SPREADS {
            let mut random = Random(seed);
            let mut w = spread.numbers(&mut random, ROWS * cols);
            w[..cols].fill(1.0);
            let matrix = matrix(DenseType::F32, &w, cols);
            let mut h = vec![spread.numbers(&mut random, cols)];
            // The largest sums there are.
            h.push(vec![1.0; cols]);
            h.push(vec![-1.0; cols]);
            let bounds = |kernel: Kernel, h: &[f32]| {
                let head = screened(kernel, &matrix);
                let mut query = Query::default();
                query.set(h);
                let mut all = Vec::new();
                for screen in [Screen::Exact, Screen::Proven] {
                    let mut lower = vec![0.0; ROWS];
                    head.lower_bounds(kernel, screen, 0..ROWS, &[&query], &mut [&mut lower]);
                    all.extend(lower.iter().map(|lower| lower.to_bits()));
                    // Beside other queries, more than one walk takes, and not from the first row on.
                    let mut other = Query::default();
                    other.set(&h.iter().map(|x| 1.0 - x).collect::<Vec<f32>>());
                    let n = if cols <= 320 { 15 } else { 3 };
                    let mut queries = vec![&other; n];
                    queries[n - 1] = &query;
                    let mut shared = vec![vec![0.0; ROWS - 1]; n];
                    let mut out: Vec<&mut [f32]> =
                        shared.iter_mut().map(Vec::as_mut_slice).collect();
                    head.lower_bounds(kernel, screen, 1..ROWS, &queries, &mut out);
                    assert_eq!(shared[n - 1], lower[1..], "{kernel}, {n} queries");
                }
                all
            };
            for h in &h {
                let expected = bounds(scalar, h);
                for kernel in Kernel::available() {
                    assert_eq!(
                        bounds(kernel, h),
                        expected,
                        "{kernel}, {cols} columns {spread:?}, seed {seed:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn proven_bounds_hold_for_every_row() {
    let kernel = Kernel::best();
    for (seed, spread) in (0x5eed_0500..).zip(SPREADS) {
        let mut random = Random(seed);
        for cols in [5, 320, 4096] {
            let mut w = spread.numbers(&mut random, 300 * cols);
            // Tiny and zero rows.
            w[..cols].iter_mut().for_each(|w| *w *= 1e-20);
            w[cols..2 * cols].fill(0.0);
            let matrix = matrix(DenseType::F32, &w, cols);
            let head = screened(kernel, &matrix);
            for _ in 0..20 {
                let h = query(&mut random, spread, &w, cols);
                let mut query = Query::default();
                query.set(&h);
                if !head.can_screen(&query) {
                    continue;
                }
                let mut lower = vec![0.0; 300];
                head.lower_bounds(kernel, Screen::Proven, 0..300, &[&query], &mut [&mut lower]);
                for (row, (lower, logit)) in lower
                    .into_iter()
                    .zip(logits(kernel, &matrix, &h))
                    .enumerate()
                {
                    let upper = lower + head.width(Screen::Proven, row, &query);
                    assert!(
                        (lower..=upper).contains(&logit),
                        "{lower} {logit} {upper}: row {row} of {cols} {spread:?}, seed {seed:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_has_no_bounds_is_not_screened() {
    let kernel = Kernel::best();
    let can = |w: &[f32], h: &[f32]| {
        let head = screened(kernel, &matrix(DenseType::F32, w, h.len()));
        let mut query = Query::default();
        query.set(h);
        head.can_screen(&query)
    };
    assert!(can(&[1.0, 2.0], &[1.0, 2.0]));
    assert!(can(&[0.0, 0.0], &[1.0, 2.0]));
    for h in [
        [0.0, 0.0],
        [f32::NAN, 1.0],
        [f32::INFINITY, 1.0],
        [1e-20, 0.0],
        [1e35, 0.0],
    ] {
        assert!(!can(&[1.0, 2.0], &h), "{h:?}");
    }
    for w in [[1.0, f32::NAN], [f32::NEG_INFINITY, 1.0], [1e38, 1.0]] {
        assert!(!can(&w, &[1.0, 2.0]), "{w:?}");
    }
}

#[test]
fn the_kth_largest_is_found() {
    let mut random = Random(0x5eed_0600);
    let mut scratch = Vec::new();
    for n in [1, 5, 64, 1000, 10_000] {
        let values: Vec<f32> = (0..n).map(|_| random.below(500) as f32).collect();
        let mut sorted = values.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 40, n] {
            let expected = sorted.get(k - 1).copied();
            assert_eq!(kth_largest(&values, k, &mut scratch), expected);
            let mut peaks = Peaks::default();
            peaks.find(&values);
            assert_eq!(peaks.kth_largest(&values, k, &mut scratch), expected);
            let mut found = Vec::new();
            let least = expected.unwrap_or(250.0);
            peaks.reaching(&values, least, |place, value| found.push((place, value)));
            let all = values.iter().copied().enumerate();
            let wanted: Vec<_> = all.filter(|&(_, value)| value >= least).collect();
            assert_eq!(found, wanted);
        }
    }
}
