//! What each kernel reaches on this machine, beside the machine's own read bandwidth and AVX2's peak, on the shapes of BitNet 2B-4T.
//!
//! `cargo bench -p bitnet-kernels [-- FILTER]`. Every figure is the median of interleaved rounds, with the spread (lowest to
//! highest) behind it, so that a busy moment hits all rows of the table alike. FILTER keeps the lines that contain it.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_kernels::probe::{PRODUCTS_PER_ROUND, byte_products, read_all};
use bitnet_kernels::{
    Attend, DenseMatrix, DenseType, Kernel, PackedMatrix, Packing, QuantRows, Query, Screen,
    ScreenedHead, SharedBytes,
};

const ROUNDS: usize = 7;
/// One measurement repeats its work for at least this long.
const SPAN: Duration = Duration::from_millis(40);
/// More than the caches hold.
const LARGE_BYTES: usize = 256 << 20;
/// The same for matrices copied into another packing.
const COPIED_BYTES: usize = 96 << 20;

/// Outputs × inputs of the linears of 2B-4T.
const SHAPES: [(usize, usize); 4] = [(6912, 2560), (2560, 6912), (2560, 2560), (640, 2560)];

/// A line of the table: a name, its unit, units per call, and the call.
struct Line<'a> {
    name: String,
    unit: &'static str,
    amount: f64,
    call: Box<dyn FnMut() + 'a>,
    rates: Vec<f64>,
}

impl<'a> Line<'a> {
    fn new(name: String, unit: &'static str, amount: f64, call: impl FnMut() + 'a) -> Self {
        let call = Box::new(call);
        Line {
            name,
            unit,
            amount,
            call,
            rates: Vec::new(),
        }
    }

    /// `amount` in bytes, shown as GB/s.
    fn gigabytes(name: String, bytes: usize, call: impl FnMut() + 'a) -> Self {
        Line::new(name, "GB/s", bytes as f64, call)
    }

    /// `amount` in multiply-adds, shown as 10^9 per second.
    fn multiply_adds(name: String, products: usize, call: impl FnMut() + 'a) -> Self {
        Line::new(name, "G multiply-adds/s", products as f64, call)
    }

    fn measure(&mut self) {
        let start = Instant::now();
        let mut calls = 0;
        while start.elapsed() < SPAN {
            (self.call)();
            calls += 1;
        }
        self.rates
            .push(self.amount * f64::from(calls) / start.elapsed().as_secs_f64() / 1e9);
    }

    fn report(&mut self) {
        self.rates.sort_by(f64::total_cmp);
        let median = self.rates[self.rates.len() / 2];
        let (low, high) = (self.rates[0], self.rates[self.rates.len() - 1]);
        println!(
            "{:<44} {median:>8.1} {:<18} ({low:.1} to {high:.1})",
            self.name, self.unit
        );
    }
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    let large = SharedBytes::new(codes(LARGE_BYTES));
    let screened = screened(&large);
    let kernels = Kernel::available();
    let mut lines = bandwidth(&large);
    lines.extend(peak());
    let mut matrices = Matrices {
        large: large.clone(),
        copies: HashMap::new(),
    };
    for kernel in &kernels {
        lines.extend(decode(*kernel, &mut matrices));
        lines.extend(prefill(*kernel, &mut matrices));
        lines.extend(batches(*kernel, &mut matrices));
        if kernel.packing() != Packing::I2S {
            continue;
        }
        lines.extend(head(*kernel, &large));
        lines.extend(screening(*kernel, &screened));
        lines.push(attention(*kernel, "in caches", 1));
        lines.push(attention(*kernel, "from memory", 64));
    }
    lines.retain(|line| line.name.contains(&filter) || line.name.starts_with("peak"));
    for _ in 0..ROUNDS {
        lines.iter_mut().for_each(Line::measure);
    }
    lines.iter_mut().for_each(Line::report);
}

/// I2_S of random weights; a head's numbers, too, in other lines, and finite: the highest bits of a byte are never all set.
fn codes(bytes: usize) -> Vec<u8> {
    let mut state = 0x5eed_u32;
    let mut byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let digit = |place: u32| ((state >> 16) / 3u32.pow(place) % 3) as u8;
        (0..4).fold(0, |byte, place| byte << 2 | digit(place))
    };
    (0..bytes).map(&mut byte).collect()
}

/// Reading alone, with one thread and with two.
fn bandwidth(large: &SharedBytes) -> Vec<Line<'_>> {
    let line = |threads: usize| {
        Line::gigabytes(
            format!("read, threads: {threads}"),
            large.len(),
            move || {
                std::thread::scope(|scope| {
                    for part in large.chunks(large.len() / threads) {
                        scope.spawn(move || black_box(read_all(part)));
                    }
                });
            },
        )
    };
    vec![line(1), line(2)]
}

/// Multiplying alone, with one thread, where there is AVX2.
fn peak() -> Option<Line<'static>> {
    const ROUNDS: usize = 10_000;
    byte_products(1)?;
    let name = "peak, vpmaddubsw + vpaddw".to_owned();
    let products = ROUNDS * PRODUCTS_PER_ROUND;
    Some(Line::multiply_adds(name, products, || {
        black_box(byte_products(ROUNDS));
    }))
}

/// As many matrices of a shape as the large buffer holds, one after another, so that each comes from memory. Packings
/// other than I2_S are copies, made once per shape.
struct Matrices {
    large: SharedBytes,
    copies: HashMap<(Packing, usize, usize), Vec<PackedMatrix>>,
}

impl Matrices {
    fn get(&mut self, packing: Packing, rows: usize, cols: usize) -> Vec<PackedMatrix> {
        let originals = originals(&self.large, rows, cols);
        if packing == Packing::I2S {
            return originals;
        }
        let n_copies = (COPIED_BYTES * 4 / (rows * cols)).min(originals.len());
        let copies = self.copies.entry((packing, rows, cols));
        let copy = |w: &PackedMatrix| w.repack(packing).expect("there are no codes 3");
        copies
            .or_insert_with(|| originals[..n_copies].iter().map(copy).collect())
            .clone()
    }
}

fn originals(large: &SharedBytes, rows: usize, cols: usize) -> Vec<PackedMatrix> {
    let bytes = rows * cols / 4;
    let part = |i: usize| {
        large
            .slice(i * bytes..(i + 1) * bytes)
            .expect("the part is inside")
    };
    (0..large.len() / bytes)
        .map(|i| PackedMatrix::i2_s(part(i), rows, cols, 1.0).expect("the shape fits"))
        .collect()
}

fn activations(kernel: Kernel, tokens: usize, cols: usize) -> QuantRows {
    let mut x = QuantRows::new(tokens, cols);
    let input: Vec<f32> = (0..cols).map(|i| (i as f32 * 0.37).sin()).collect();
    x.rows_mut().for_each(|row| kernel.quantize(&input, row));
    x
}

/// GB/s of the packing's own bytes.
fn decode(kernel: Kernel, matrices: &mut Matrices) -> Vec<Line<'static>> {
    let line = |(rows, cols)| {
        let x = activations(kernel, 1, cols);
        let mut out = vec![0.0; rows];
        let matrices = matrices.get(kernel.packing(), rows, cols);
        let bytes = matrices[0].bytes().len();
        let mut matrices = matrices.into_iter().cycle();
        Line::gigabytes(
            format!("{kernel}, decode {rows} x {cols}"),
            bytes,
            move || {
                let w = matrices.next().expect("the cycle has matrices");
                kernel.matmul(&w, 0..rows, &x, &mut [&mut out]);
            },
        )
    };
    SHAPES.into_iter().map(line).collect()
}

fn prefill(kernel: Kernel, matrices: &mut Matrices) -> Vec<Line<'static>> {
    let line = |((rows, cols), tokens): ((usize, usize), usize)| {
        let x = activations(kernel, tokens, cols);
        let mut out = vec![vec![0.0; rows]; tokens];
        let w = matrices.get(kernel.packing(), rows, cols).swap_remove(0);
        // A part of the rows, so that the scalar kernel ends, too.
        let rows = rows.min(512);
        Line::multiply_adds(
            format!("{kernel}, {tokens} tokens, x {cols}"),
            rows * cols * tokens,
            move || {
                let mut out: Vec<&mut [f32]> = out.iter_mut().map(|out| &mut out[..rows]).collect();
                kernel.matmul(&w, 0..rows, &x, &mut out);
            },
        )
    };
    [
        (SHAPES[0], 128),
        (SHAPES[1], 128),
        (SHAPES[0], 2),
        (SHAPES[0], 4),
        (SHAPES[0], 8),
    ]
    .into_iter()
    .map(line)
    .collect()
}

/// Weights that come from memory.
fn batches(kernel: Kernel, matrices: &mut Matrices) -> Vec<Line<'static>> {
    let line = |((rows, cols), tokens): ((usize, usize), usize)| {
        let x = activations(kernel, tokens, cols);
        let mut out = vec![vec![0.0; rows]; tokens];
        let matrices = matrices.get(kernel.packing(), rows, cols);
        let mut matrices = matrices.into_iter().cycle();
        Line::multiply_adds(
            format!("{kernel}, batch of {tokens}, {rows} x {cols}"),
            rows * cols * tokens,
            move || {
                let w = matrices.next().expect("the cycle has matrices");
                let mut out: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
                kernel.matmul(&w, 0..rows, &x, &mut out);
            },
        )
    };
    let tokens = [2, 4, 8, 16, 64];
    let all = tokens
        .iter()
        .flat_map(|&n| SHAPES[..2].iter().map(move |&shape| (shape, n)));
    all.map(line).collect()
}

fn head(kernel: Kernel, large: &SharedBytes) -> Vec<Line<'static>> {
    let cols = 2560;
    let line = |(ty, tokens): (DenseType, usize)| {
        let row_bytes = ty.row_bytes(cols).expect("2560 columns fill blocks");
        let rows = large.len() / row_bytes;
        let bytes = large
            .slice(0..rows * row_bytes)
            .expect("the rows are inside");
        let m = DenseMatrix::new(bytes, ty, rows, cols).expect("the shape fits");
        let x = vec![vec![0.5; cols]; tokens];
        let step = 4096.min(rows);
        let mut out = vec![vec![0.0; step]; tokens];
        let mut first = 0;
        Line::gigabytes(
            format!("{kernel}, head {ty}, {tokens} tokens"),
            step * row_bytes,
            move || {
                first = if first + 2 * step <= rows {
                    first + step
                } else {
                    0
                };
                let x: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
                let mut out: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
                kernel.dense_matmul(&m, first..first + step, &x, &mut out);
            },
        )
    };
    let lines = [
        (DenseType::F16, 1),
        (DenseType::F16, 4),
        (DenseType::Q8_0, 1),
        (DenseType::Q6_K, 1),
    ];
    lines.into_iter().map(line).collect()
}

/// A head whose planes are more than the caches hold.
fn screened(large: &SharedBytes) -> ScreenedHead {
    let (rows, cols) = (48 << 10, 2560);
    let bytes = large
        .slice(0..2 * rows * cols)
        .expect("the rows are inside");
    let matrix = DenseMatrix::new(bytes, DenseType::F16, rows, cols).expect("the shape fits");
    let plane = vec![0; ScreenedHead::plane_bytes(rows, cols)];
    let mut head = ScreenedHead::new(matrix, [plane.clone(), plane]);
    let (kernel, mut scratch) = (Kernel::best(), Vec::new());
    for rows in head.unmade_rows(rows, 64) {
        rows.make(kernel, &mut scratch);
    }
    head.accept(rows);
    head
}

/// Bounds of all rows by the high plane, for one query and for several; and of rows here and there by the low plane, too.
fn screening(kernel: Kernel, head: &ScreenedHead) -> Vec<Line<'_>> {
    const PART: usize = 128;
    let (rows, cols) = (head.matrix().rows(), head.matrix().cols());
    let query = |n: usize| {
        let mut query = Query::default();
        query.set(
            &(0..cols)
                .map(|i| (i * (n + 1)) as f32 * 0.37)
                .map(f32::sin)
                .collect::<Vec<_>>(),
        );
        query
    };
    let line = |n: usize| {
        let queries: Vec<Query> = (0..n).map(query).collect();
        let mut out = vec![vec![0.0; PART]; n];
        let mut parts = (0..rows / PART).cycle();
        let name = format!("{kernel}, screening, {n} queries");
        Line::multiply_adds(name, PART * cols * n, move || {
            let part = parts.next().expect("the cycle has parts") * PART;
            let queries: Vec<&Query> = queries.iter().collect();
            let mut out: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            head.lower_bounds(kernel, Screen::Exact, part..part + PART, &queries, &mut out);
        })
    };
    let mut lines: Vec<Line<'_>> = [1, 2, 4, 8].into_iter().map(line).collect();
    let (query, mut row) = (query(0), 0);
    let name = format!("{kernel}, screening, rows refined");
    lines.push(Line::multiply_adds(name, cols, move || {
        // None reaches the threshold; as far apart as they are in a search.
        black_box(head.refine(kernel, row, &query, 0.0, f32::MAX));
        row = (row + 50) % (rows - 200);
        head.prefetch_row(row + 100);
    }));
    lines
}

/// Four query heads of 128 over 4,096 positions.
/// One token's heads over `n_heads` key/value heads of a cache in f16.
fn attention(kernel: Kernel, name: &str, n_heads: usize) -> Line<'static> {
    let (n_q, head_dim, n_pos) = (4, 128, 4096);
    let q = vec![0.1; n_q * head_dim];
    let cells = n_heads * n_pos * head_dim;
    let (k, v) = (vec![0x3400; cells], vec![0x3400; cells]);
    let mut scores = vec![0.0; n_q * n_pos];
    let mut out = vec![0.0; n_q * head_dim];
    let products = 2 * n_q * cells;
    let name = format!("{kernel}, attention f16 {name}");
    Line::multiply_adds(name, products, move || {
        let heads = k.chunks_exact(n_pos * head_dim);
        for (k, v) in heads.zip(v.chunks_exact(n_pos * head_dim)) {
            let (q, scores, out) = (&q, &mut scores, &mut out);
            kernel.attend(&mut [Attend {
                q,
                k,
                v,
                head_dim,
                n_pos,
                scale: 0.1,
                scores,
                out,
            }]);
        }
    })
}
