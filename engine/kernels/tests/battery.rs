//! Every kernel of this CPU against naive arithmetic (integers) and against the scalar kernel (floats), all by `assert_eq!`.

use bitnet_kernels::{
    Attend, CacheCell, DenseMatrix, DenseType, Isa, Kernel, MatrixError, PackedMatrix, Packing,
    Q8Block, QuantRows, Score, SharedBytes, Weigh, f16_to_f32, f32_to_f16,
};

const ROWS: [usize; 6] = [1, 2, 3, 5, 16, 33];
const COLS: [usize; 5] = [128, 256, 384, 2560, 6912];
/// More columns, and more rows, than kernels with tables take at a time.
const LARGE: [(usize, usize); 2] = [(3, 10_880), (2113, 128)];
const TOKENS: [usize; 6] = [1, 2, 3, 4, 7, 17];

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    /// Of sizes from 1e-6 to 1e6.
    fn wide_floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| self.float() * 10f32.powf(6.0 * self.float()))
            .collect()
    }
}

/// Weights of the largest matrix: under Miri each takes microseconds, times kernels and tokens.
const MOST: usize = if cfg!(miri) { 256 } else { 1 << 40 };

/// How a battery fills packed bytes and activations.
#[derive(Clone, Copy, Debug)]
enum Fill {
    /// Any byte, so with the code 3.
    Random(u64),
    /// Random codes without 3.
    Ternary(u64),
    /// The same with activations as `quantize` makes them, so without -128.
    Quantized(u64),
    /// Every byte of codes, every activation.
    Constant(u8, i8),
    /// Activations of alternating sign.
    Alternating(u8),
}

const FILLS: [Fill; 14] = [
    Fill::Random(0x5eed_0001),
    Fill::Random(0x5eed_0002),
    Fill::Ternary(0x5eed_0010),
    Fill::Ternary(0x5eed_0011),
    Fill::Constant(0x00, 127),
    Fill::Constant(0x55, -128),
    Fill::Constant(0xaa, -128),
    Fill::Constant(0xaa, 127),
    Fill::Constant(0xaa, -127),
    Fill::Constant(0xff, 127),
    Fill::Constant(0xff, -128),
    Fill::Constant(0x00, -128),
    Fill::Alternating(0xff),
    Fill::Alternating(0x92),
];

impl Fill {
    fn codes(self, n: usize) -> Vec<u8> {
        match self {
            Fill::Random(seed) => {
                let mut random = Random(seed);
                (0..n).map(|_| random.byte()).collect()
            }
            Fill::Ternary(seed) | Fill::Quantized(seed) => {
                let mut random = Random(seed);
                let mut byte = || (0..4).fold(0, |byte, _| (byte << 2) | (random.byte() % 3));
                (0..n).map(|_| byte()).collect()
            }
            Fill::Constant(code, _) | Fill::Alternating(code) => vec![code; n],
        }
    }

    fn activation(self, random: &mut Random, i: usize) -> i8 {
        match self {
            Fill::Random(_) | Fill::Ternary(_) => random.byte() as i8,
            Fill::Quantized(_) => (random.byte() as i8).max(-127),
            Fill::Constant(_, q) => q,
            Fill::Alternating(_) => [127, -128][i % 2],
        }
    }

    fn activations(self, tokens: usize, cols: usize) -> QuantRows {
        let mut random = Random(0x5eed_0003);
        let mut x = QuantRows::new(tokens, cols);
        for (t, row) in x.rows_mut().enumerate() {
            for (i, q) in row.values.iter_mut().enumerate() {
                *q = self.activation(&mut random, i);
            }
            *row.sum = row.values.iter().map(|q| i32::from(*q)).sum();
            *row.scale = 1.5 + t as f32;
        }
        x
    }
}

/// The definition: weights by `ternary_row`, one product after another.
fn naive(w: &PackedMatrix, x: &QuantRows) -> Vec<Vec<f32>> {
    let mut out = vec![vec![0.0; w.rows()]; x.len()];
    let mut weights = vec![0; w.cols()];
    for r in 0..w.rows() {
        w.ternary_row(r, &mut weights);
        for (t, out) in out.iter_mut().enumerate() {
            let x = x.row(t);
            let products = weights
                .iter()
                .zip(x.values)
                .map(|(w, q)| i32::from(*w) * i32::from(*q));
            out[r] = products.sum::<i32>() as f32 / x.scale * w.scale();
        }
    }
    out
}

/// The matrix in every packing that can hold it.
fn packed(w: &PackedMatrix) -> Vec<PackedMatrix> {
    let all = Packing::ALL.map(|packing| w.repack(packing));
    let has_code_3 = w.bytes().iter().any(|b| b & b >> 1 & 0x55 != 0);
    assert!(all.iter().skip(1).all(|w| w.is_err() == has_code_3));
    all.into_iter().flatten().collect()
}

/// Each kernel of this CPU with the matrix it multiplies.
fn each_kernel(packed: &[PackedMatrix]) -> impl Iterator<Item = (Kernel, &PackedMatrix)> {
    let kernels = Kernel::available().into_iter();
    kernels.filter_map(|kernel| {
        let w = packed.iter().find(|w| w.packing() == kernel.packing());
        w.map(|w| (kernel, w))
    })
}

fn multiply(
    kernel: Kernel,
    w: &PackedMatrix,
    rows: std::ops::Range<usize>,
    x: &QuantRows,
) -> Vec<Vec<f32>> {
    let mut out = vec![vec![f32::NAN; rows.len()]; x.len()];
    let mut slices: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    kernel.matmul(w, rows, x, &mut slices);
    out
}

#[test]
fn ternary_products_are_exact() {
    let shapes = ROWS.into_iter().flat_map(|r| COLS.map(|c| (r, c)));
    for (rows, cols) in shapes.chain(LARGE).filter(|(r, c)| r * c <= MOST) {
        let fills = if cfg!(miri) { 1..3 } else { 0..FILLS.len() };
        for fill in FILLS[fills].iter().copied() {
            let tokens = if cfg!(miri) { &TOKENS[..3] } else { &TOKENS };
            check_batches(rows, cols, fill, tokens);
        }
    }
}

/// Products with the first `n` of the same tokens, for each of `tokens`.
fn check_batches(rows: usize, cols: usize, fill: Fill, tokens: &[usize]) {
    let codes = SharedBytes::new(fill.codes(rows * cols / 4));
    let w = PackedMatrix::i2_s(codes, rows, cols, 0.3).unwrap();
    let most = tokens.iter().max().expect("there are tokens");
    let expected = naive(&w, &fill.activations(*most, cols));
    let packed = packed(&w);
    for &n in tokens {
        let x = fill.activations(n, cols);
        for (kernel, w) in each_kernel(&packed) {
            let found = multiply(kernel, w, 0..rows, &x);
            assert_eq!(
                found,
                expected[..n],
                "{kernel}, {rows} x {cols}, {n} tokens, {fill:?}"
            );
        }
    }
}

/// More rows than a block of them, more activations than a cache near the core takes: every split of a short batch, with odd rows
/// left over, and the largest sums.
#[test]
fn short_batches_are_exact() {
    let tokens: Vec<usize> = (1..=if cfg!(miri) { 5 } else { 20 }).collect();
    for (rows, cols, fill) in [
        (125, 6912, Fill::Ternary(0x5eed_0013)),
        (63, 2560, Fill::Random(0x5eed_0014)),
        (61, 2560, Fill::Constant(0x00, 127)),
        (61, 2560, Fill::Constant(0xaa, -128)),
        (61, 2560, Fill::Constant(0xff, -128)),
        (62, 2560, Fill::Alternating(0x92)),
    ] {
        let cols = if cfg!(miri) { 128 } else { cols };
        check_batches(rows, cols, fill, &tokens);
    }
}

/// As many rows and tokens as pay for tables of sums, several blocks of either, half a cache line at the end of rows, and what
/// tables can't hold.
#[test]
fn long_batches_are_exact() {
    if cfg!(miri) {
        check_batches(129, 128, Fill::Quantized(0x5eed_0020), &[16]);
        return;
    }
    let tokens = [9, 10, 16, 25, 26, 47, 140];
    for (rows, cols, fill) in [
        (131, 384, Fill::Quantized(0x5eed_0015)),
        (128, 2560, Fill::Quantized(0x5eed_0016)),
        (701, 256, Fill::Quantized(0x5eed_0017)),
        (1283, 128, Fill::Quantized(0x5eed_0018)),
        (130, 512, Fill::Constant(0x00, 127)),
        (130, 512, Fill::Constant(0x00, -127)),
        (130, 512, Fill::Constant(0xaa, -127)),
        (130, 512, Fill::Constant(0x00, -128)),
        (130, 512, Fill::Constant(0xff, 127)),
        (130, 512, Fill::Constant(0x93, 127)),
        (130, 512, Fill::Constant(0xe4, 127)),
        (130, 512, Fill::Alternating(0x55)),
        (130, 384, Fill::Random(0x5eed_0019)),
    ] {
        check_batches(rows, cols, fill, &tokens);
    }
}

/// As many columns as a matrix may have, and sums as large as they get.
#[test]
fn the_longest_rows_do_not_overflow() {
    let (rows, cols) = (3, if cfg!(miri) { 128 } else { 1 << 22 });
    for fill in [Fill::Constant(0xff, -128), Fill::Constant(0xff, 127)] {
        let codes = SharedBytes::new(fill.codes(rows * cols / 4));
        let w = PackedMatrix::i2_s(codes, rows, cols, 1.0).unwrap();
        let expected = naive(&w, &fill.activations(3, cols));
        for n in 1..=3 {
            let x = fill.activations(n, cols);
            for (kernel, w) in each_kernel(std::slice::from_ref(&w)) {
                let found = multiply(kernel, w, 0..rows, &x);
                assert_eq!(found, expected[..n], "{kernel}, {n} tokens, {fill:?}");
            }
        }
    }
}

#[test]
fn row_ranges_are_parts_of_the_whole() {
    let (rows, cols) = (110, if cfg!(miri) { 128 } else { 384 });
    let fill = Fill::Ternary(0x5eed_0004);
    let w = PackedMatrix::i2_s(
        SharedBytes::new(fill.codes(rows * cols / 4)),
        rows,
        cols,
        0.7,
    )
    .unwrap();
    let packed = packed(&w);
    let tokens = [0, 1, 2, 5, 130].into_iter();
    for n in tokens.filter(|n| *n < 3 || !cfg!(miri)) {
        let x = fill.activations(n, cols);
        for (kernel, w) in each_kernel(&packed) {
            let whole = multiply(kernel, w, 0..rows, &x);
            let ranges = [0..0, 0..1, 7..20, 7..34, 31..97, 32..64, 32..33, 33..33];
            for range in ranges.into_iter().chain([100..110, 110..110]) {
                let part = multiply(kernel, w, range.clone(), &x);
                for (part, whole) in part.iter().zip(&whole) {
                    assert_eq!(
                        part,
                        &whole[range.clone()],
                        "{kernel}, rows {range:?}, {n} tokens"
                    );
                }
            }
        }
    }
}

/// Weights in a file start anywhere.
#[test]
fn bytes_need_no_alignment() {
    let (rows, cols) = (5, 256);
    let codes = Fill::Ternary(0x5eed_0005).codes(rows * cols / 4);
    let x = Fill::Random(0x5eed_0006).activations(4, cols);
    let aligned = PackedMatrix::i2_s(SharedBytes::new(codes.clone()), rows, cols, 1.0).unwrap();
    for offset in 1..8 {
        let shifted = SharedBytes::new([vec![0; offset], codes.clone()].concat());
        let shifted = shifted.slice(offset..offset + codes.len()).unwrap();
        let shifted = packed(&PackedMatrix::i2_s(shifted, rows, cols, 1.0).unwrap());
        for (kernel, shifted) in each_kernel(&shifted) {
            assert_eq!(
                multiply(kernel, shifted, 0..rows, &x),
                multiply(Kernel::best(), &aligned, 0..rows, &x),
                "{kernel}"
            );
        }
    }
}

#[test]
fn packing_and_unpacking_agree() {
    let mut random = Random(0x5eed_0007);
    let shapes = [(3, 256), (32, 128), (65, 384), (40, 640)].into_iter();
    for (rows, cols) in shapes.filter(|(r, c)| r * c / 6 <= MOST) {
        let weights: Vec<i8> = (0..rows * cols)
            .map(|_| (random.byte() % 3) as i8 - 1)
            .collect();
        let mut row = vec![0; cols];
        for packing in Packing::ALL {
            let w = PackedMatrix::from_ternary(packing, rows, cols, 1.5, &weights).unwrap();
            assert_eq!(w.packing(), packing);
            assert_eq!(Some(w.bytes().len()), packing.matrix_bytes(rows, cols));
            for again in Packing::ALL {
                let w = w.repack(again).unwrap();
                assert_eq!((w.packing(), w.scale()), (again, 1.5));
                for (r, expected) in weights.chunks_exact(cols).enumerate() {
                    w.ternary_row(r, &mut row);
                    assert_eq!(row, expected, "{packing} as {again}, row {r}");
                }
            }
        }
    }
}

#[test]
fn tables_take_five_thirds_of_a_bit() {
    let bits = |packing: Packing, rows, cols| {
        packing.matrix_bytes(rows, cols).unwrap() as f64 * 8.0 / (rows * cols) as f64
    };
    assert_eq!(bits(Packing::I2S, 2560, 6912), 2.0);
    assert_eq!(bits(Packing::Tl1, 2560, 6912), 2.0);
    assert_eq!(bits(Packing::Tl2, 2560, 6912), 5.0 / 3.0);
    assert!(bits(Packing::Tl2, 6912, 2560) < 1.68);
    assert_eq!(Packing::Tl2.matrix_bytes(usize::MAX, 1 << 20), None);
}

/// Where a code 3 stands is found, whatever its place in byte, block and group.
#[test]
fn a_code_without_a_weight_is_named() {
    let (rows, cols) = (70, 384);
    for (row, col) in [(0, 0), (0, 33), (31, 127), (32, 128), (50, 300), (69, 383)] {
        let mut codes = vec![0x55; rows * cols / 4];
        let (block, j) = (col / 128, col % 128);
        codes[row * cols / 4 + block * 32 + j % 32] |= 3 << (6 - 2 * (j / 32));
        let w = PackedMatrix::i2_s(SharedBytes::new(codes), rows, cols, 1.0).unwrap();
        for packing in [Packing::Tl1, Packing::Tl2] {
            let error = w.repack(packing).unwrap_err();
            assert_eq!(error, MatrixError::Code { row, col });
        }
    }
}

fn quantized(kernel: Kernel, x: &[f32]) -> QuantRows {
    let mut rows = QuantRows::new(1, x.len());
    kernel.quantize(x, rows.rows_mut().next().unwrap());
    rows
}

#[test]
fn quantizes_as_the_reference_does() {
    let mut random = Random(0x5eed_0008);
    let mut table = vec![
        vec![0.0; 128],
        vec![1e-7; 128],
        vec![-0.5; 131],
        vec![3e38; 5],
        vec![1e-45; 3],
    ];
    // 127 makes s = 1, so halves stay halves.
    table.push(
        (0..=254)
            .map(|i| i as f32 / 2.0)
            .chain((0..=254).map(|i| -i as f32 / 2.0))
            .collect(),
    );
    table.extend((1..40).map(|n| random.wide_floats(n * 31)));
    for x in table {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let s = 127.0 / largest.max(1e-5);
        let expected: Vec<i8> = x.iter().map(|x| (x * s).round_ties_even() as i8).collect();
        for kernel in Kernel::available() {
            let rows = quantized(kernel, &x);
            let row = rows.row(0);
            assert_eq!(row.values, expected, "{kernel}");
            assert_eq!(row.scale, s, "{kernel}");
            assert_eq!(
                row.sum,
                expected.iter().map(|q| i32::from(*q)).sum::<i32>(),
                "{kernel}"
            );
        }
    }
}

#[test]
fn a_row_without_numbers_stays_alone() {
    let w = PackedMatrix::from_ternary(Packing::I2S, 2, 128, 1.0, &[1; 256]).unwrap();
    let packed = packed(&w);
    for (kernel, w) in each_kernel(&packed) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut inputs = vec![vec![0.5; 128]; 5];
            inputs[2][77] = bad;
            let mut x = QuantRows::new(5, 128);
            x.rows_mut()
                .zip(&inputs)
                .for_each(|(row, input)| kernel.quantize(input, row));
            for (t, out) in multiply(kernel, w, 0..2, &x).iter().enumerate() {
                assert_eq!(
                    out.iter().all(|y| y.is_nan()),
                    t == 2,
                    "{kernel}, {bad}, token {t}: {out:?}"
                );
            }
        }
    }
}

const TYPES: [DenseType; 6] = [
    DenseType::F32,
    DenseType::F16,
    DenseType::BF16,
    DenseType::Q8_0,
    DenseType::Q6_K,
    DenseType::Q4_0,
];

/// Random bytes whose scales and numbers are small f16, so that no sum overflows.
fn dense(ty: DenseType, rows: usize, cols: usize, seed: u64) -> DenseMatrix {
    let mut random = Random(seed);
    let mut bytes = Vec::new();
    while bytes.len() < rows * ty.row_bytes(cols).unwrap() {
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.byte()).collect();
        let small = f32_to_f16(random.float()).to_le_bytes();
        match ty {
            DenseType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            DenseType::F16 => block.copy_from_slice(&small),
            DenseType::BF16 => block.copy_from_slice(&random.float().to_le_bytes()[2..]),
            DenseType::Q8_0 | DenseType::Q4_0 => block[..2].copy_from_slice(&small),
            DenseType::Q6_K => block[208..].copy_from_slice(&small),
        }
        bytes.extend(block);
    }
    DenseMatrix::new(SharedBytes::new(bytes), ty, rows, cols).unwrap()
}

/// Number `c` of row `r`, straight from the format's description.
fn dense_element(m: &DenseMatrix, r: usize, c: usize) -> f32 {
    let ty = m.ty();
    let block = &m.bytes()[r * m.row_bytes() + c / ty.block_cols() * ty.block_bytes()..]
        [..ty.block_bytes()];
    let half = |at: usize| f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
    let i = c % ty.block_cols();
    match ty {
        DenseType::F32 => f32::from_le_bytes(block.try_into().unwrap()),
        DenseType::F16 => half(0),
        DenseType::BF16 => {
            f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16)
        }
        DenseType::Q8_0 => half(0) * f32::from(block[2 + i] as i8),
        DenseType::Q4_0 => {
            let byte = block[2 + i % 16];
            let code = if i < 16 { byte & 15 } else { byte >> 4 };
            (f32::from(code) - 8.0) * half(0)
        }
        DenseType::Q6_K => {
            let (h, l) = (i / 128, i % 32);
            let (ql, qh, sc) = (
                &block[64 * h..],
                &block[128 + 32 * h..],
                &block[192 + 8 * h..],
            );
            let (code, sc) = match i % 128 / 32 {
                0 => ((ql[l] & 15) + ((qh[l] & 3) << 4), sc[l / 16]),
                1 => ((ql[l + 32] & 15) + ((qh[l] >> 2 & 3) << 4), sc[l / 16 + 2]),
                2 => ((ql[l] >> 4) + ((qh[l] >> 4 & 3) << 4), sc[l / 16 + 4]),
                _ => ((ql[l + 32] >> 4) + ((qh[l] >> 6 & 3) << 4), sc[l / 16 + 6]),
            };
            half(208) * f32::from(sc as i8) * (f32::from(code) - 32.0)
        }
    }
}

/// The order all kernels promise.
fn dot_in_order(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    for i in 0..a.len().next_multiple_of(32) {
        let at = |x: &[f32]| x.get(i).copied().unwrap_or(0.0);
        lanes[i % 32] = at(a).mul_add(at(b), lanes[i % 32]);
    }
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn dense_rows_and_products_have_one_value() {
    for ty in TYPES {
        let shapes = [(3, 256), (5, 2560), (2, 512)];
        let odd = [(3, 1), (4, 31), (3, 33), (2, 100)];
        let odd = odd.into_iter().filter(|_| ty.block_cols() == 1);
        for (rows, cols) in shapes.into_iter().chain(odd) {
            let m = dense(ty, rows, cols, 0x5eed_0009);
            let mut random = Random(0x5eed_000a);
            let x: Vec<Vec<f32>> = (0..9).map(|_| random.floats(cols)).collect();
            let rows_f32: Vec<Vec<f32>> = (0..rows)
                .map(|r| (0..cols).map(|c| dense_element(&m, r, c)).collect())
                .collect();
            let expected: Vec<Vec<f32>> = x
                .iter()
                .map(|x| rows_f32.iter().map(|row| dot_in_order(x, row)).collect())
                .collect();
            for kernel in Kernel::available() {
                let mut row = vec![f32::NAN; cols];
                for (r, expected) in rows_f32.iter().enumerate() {
                    kernel.dense_row(&m, r, &mut row);
                    assert_eq!(
                        bits(&row),
                        bits(expected),
                        "{kernel}, {ty}, {rows} x {cols}, row {r}"
                    );
                }
                for n in [0, 1, 2, 3, 4, 5, 9] {
                    let x: Vec<&[f32]> = x[..n].iter().map(Vec::as_slice).collect();
                    let mut out = vec![vec![f32::NAN; rows - 1]; n];
                    let mut slices: Vec<&mut [f32]> =
                        out.iter_mut().map(Vec::as_mut_slice).collect();
                    kernel.dense_matmul(&m, 1..rows, &x, &mut slices);
                    for (out, expected) in out.iter().zip(&expected) {
                        assert_eq!(
                            bits(out),
                            bits(&expected[1..]),
                            "{kernel}, {ty}, {rows} x {cols}, {n} tokens"
                        );
                    }
                }
            }
        }
    }
}

/// All 65,536 halves, denormals and NaN included, through every kernel.
#[test]
fn halves_convert_alike() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let m = DenseMatrix::new(SharedBytes::new(bytes), DenseType::F16, 1, 65_536).unwrap();
    let expected: Vec<f32> = halves.iter().map(|h| f16_to_f32(*h)).collect();
    let mut random = Random(0x5eed_000b);
    let wide: Vec<f32> = (0..100_003)
        .map(|_| f32::from_bits(random.next() as u32))
        .collect();
    let wide_halves: Vec<u16> = wide.iter().map(|x| f32_to_f16(*x)).collect();
    for kernel in Kernel::available() {
        let mut out = vec![0.0; 65_536];
        kernel.dense_row(&m, 0, &mut out);
        assert_eq!(bits(&out), bits(&expected), "{kernel}");
        let mut back = vec![0; wide.len()];
        kernel.store_f16(&wide, &mut back);
        assert_eq!(back, wide_halves, "{kernel}");
    }
}

/// Runs `f` on every kernel and wants the scalar kernel's bits from all.
fn same_bits(what: &str, f: impl Fn(Kernel) -> Vec<f32>) -> Vec<f32> {
    let scalar = Kernel::new(Packing::I2S, Isa::Scalar).unwrap();
    let expected = f(scalar);
    for kernel in Kernel::available() {
        assert_eq!(bits(&f(kernel)), bits(&expected), "{what} on {kernel}");
    }
    expected
}

const LENGTHS: [usize; 9] = [1, 5, 31, 32, 33, 100, 128, 2560, 6912];

#[test]
fn norms_and_activations_have_one_value() {
    for n in LENGTHS {
        let mut random = Random(0x5eed_000c + n as u64);
        let (x, y) = (random.wide_floats(n), random.wide_floats(n));
        let norm = same_bits("rms_norm", |kernel| {
            let mut out = vec![f32::NAN; n];
            kernel.rms_norm(&x, &y, 1e-5, &mut out);
            out
        });
        let inverse = 1.0 / (dot_in_order(&x, &x) / n as f32 + 1e-5).sqrt();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, w)| x * inverse * w).collect();
        assert_eq!(bits(&norm), bits(&expected), "rms_norm of {n}");

        let relu2 = same_bits("relu2_mul", |kernel| {
            let mut out = vec![f32::NAN; n];
            kernel.relu2_mul(&x, &y, &mut out);
            out
        });
        let expected: Vec<f32> = x
            .iter()
            .zip(&y)
            .map(|(g, u)| g.max(0.0) * g.max(0.0) * u)
            .collect();
        assert_eq!(relu2, expected, "relu2_mul of {n}");

        let sum = same_bits("add", |kernel| {
            let mut sum = x.clone();
            kernel.add(&mut sum, &y);
            sum
        });
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(bits(&sum), bits(&expected), "add of {n}");

        same_bits("silu_mul", |kernel| {
            let mut out = vec![f32::NAN; n];
            kernel.silu_mul(&x, &y, &mut out);
            out
        });
        same_bits("gelu_mul", |kernel| {
            let mut out = vec![f32::NAN; n];
            kernel.gelu_mul(&x, &y, &mut out);
            out
        });
    }
}

#[test]
fn gelu_is_accurate() {
    let x: Vec<f32> = (-120_000..120_000).map(|i| i as f32 / 1000.0).collect();
    let out = same_bits("gelu_mul", |kernel| {
        let mut out = vec![0.0; x.len()];
        kernel.gelu_mul(&x, &vec![1.0; x.len()], &mut out);
        out
    });
    for (x, y) in x.iter().zip(out) {
        let wide = f64::from(*x);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
        // As a logistic function: 1 + tanh loses the small values.
        let expected = wide / (1.0 + (-2.0 * inner).exp());
        let error = (f64::from(y) - expected).abs();
        let allowed = expected.abs() * (1e-6 + 4e-7 * inner.abs());
        assert!(error <= allowed + 1e-35, "gelu({x}) = {y}, not {expected}");
    }
}

/// Both activations of all of f32's range keep NaN and are what f64 says.
#[test]
fn silu_is_accurate() {
    let x: Vec<f32> = (-120_000..120_000).map(|i| i as f32 / 1000.0).collect();
    let out = same_bits("silu_mul", |kernel| {
        let mut out = vec![0.0; x.len()];
        kernel.silu_mul(&x, &vec![1.0; x.len()], &mut out);
        out
    });
    for (x, y) in x.iter().zip(out) {
        let expected = f64::from(*x) / (1.0 + f64::from(-x).exp());
        let error = (f64::from(y) - expected).abs();
        assert!(
            error <= expected.abs() * 4e-7 + 1e-35,
            "silu({x}) = {y}, not {expected}"
        );
    }
}

#[test]
fn activations_keep_nan_and_infinity() {
    let gate = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        -1e30,
        1e-30,
    ];
    for kernel in Kernel::available() {
        let mut out = [0.0; 6];
        kernel.silu_mul(&gate, &[1.0; 6], &mut out);
        assert!(
            out[0].is_nan() && out[1] == f32::INFINITY,
            "{kernel}: {out:?}"
        );
        kernel.gelu_mul(&gate, &[1.0; 6], &mut out);
        assert!(
            out[0].is_nan() && out[1] == f32::INFINITY,
            "{kernel}: {out:?}"
        );
        kernel.relu2_mul(&gate, &[1.0; 6], &mut out);
        assert!(
            out[0].is_nan() && out[1] == f32::INFINITY && out[2] == 0.0,
            "{kernel}: {out:?}"
        );
    }
}

/// What one attention call needs.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n_q: usize,
    head_dim: usize,
    n_pos: usize,
}

struct Cache<E> {
    q: Vec<f32>,
    k: Vec<E>,
    v: Vec<E>,
}

fn attended<E: CacheCell>(
    kernel: Kernel,
    shape: Shape,
    cache: &Cache<E>,
    call: fn(Kernel, &mut [Attend<'_, E>]),
) -> Vec<f32> {
    let Shape {
        n_q,
        head_dim,
        n_pos,
    } = shape;
    let mut out = vec![f32::NAN; n_q * head_dim];
    let attend = Attend {
        q: &cache.q,
        k: &cache.k,
        v: &cache.v,
        head_dim,
        n_pos,
        scale: 1.0 / (head_dim as f32).sqrt(),
        scores: &mut vec![f32::NAN; n_q * n_pos + 3],
        out: &mut out,
    };
    call(kernel, &mut [attend]);
    out
}

/// In f64, to see that the values are right and not only equal.
fn attended_f64(shape: Shape, cache: &Cache<f32>) -> Vec<f64> {
    let Shape {
        head_dim, n_pos, ..
    } = shape;
    let row = |x: &[f32], p: usize| -> Vec<f64> {
        x[p * head_dim..][..head_dim]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    };
    let mut out = Vec::new();
    for q in cache.q.chunks_exact(head_dim) {
        let score = |p| {
            row(&cache.k, p)
                .iter()
                .zip(q)
                .map(|(k, q)| k * f64::from(*q))
                .sum::<f64>()
                / (head_dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..n_pos).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|d| {
            (0..n_pos)
                .map(|p| weights[p] * row(&cache.v, p)[d])
                .sum::<f64>()
                / total
        }));
    }
    out
}

#[test]
fn attention_has_one_value() {
    for n_q in [1, 2, 3, 4, 5, 8] {
        for (head_dim, n_pos) in [
            (128, 1),
            (128, 31),
            (64, 33),
            (100, 70),
            (20, 7),
            (96, 200),
            (128, 1000),
            (256, 130),
        ] {
            let shape = Shape {
                n_q,
                head_dim,
                n_pos,
            };
            let mut random = Random(0x5eed_000d);
            let mut numbers = |n: usize| -> Vec<f32> {
                random
                    .floats(n)
                    .iter()
                    .map(|x| f16_to_f32(f32_to_f16(4.0 * x)))
                    .collect()
            };
            let q = numbers(n_q * head_dim);
            let (k, v) = (
                numbers((n_pos + 1) * head_dim),
                numbers((n_pos + 1) * head_dim),
            );
            let halves = |x: &[f32]| x.iter().map(|x| f32_to_f16(*x)).collect();
            let half_cache = Cache {
                q: q.clone(),
                k: halves(&k),
                v: halves(&v),
            };
            let cache = Cache { q, k, v };
            let f16 = same_bits("attend_f16", |kernel| {
                attended(kernel, shape, &half_cache, Kernel::attend::<u16>)
            });
            let f32 = same_bits("attend_f32", |kernel| {
                attended(kernel, shape, &cache, Kernel::attend::<f32>)
            });
            assert_eq!(bits(&f16), bits(&f32), "{shape:?}");
            let blocks = |x: &[f32]| -> Vec<Q8Block> {
                let mut blocks = vec![[0; 34]; n_pos * head_dim.div_ceil(32)];
                let rows = x.chunks_exact(head_dim);
                let outs = blocks.chunks_exact_mut(head_dim.div_ceil(32));
                rows.zip(outs)
                    .for_each(|(x, out)| Kernel::best().store_q8_0(x, out));
                blocks
            };
            let numbers = |x: &[Q8Block]| -> Vec<f32> {
                let rows = x.chunks_exact(head_dim.div_ceil(32));
                let rows = rows.map(|row| row.iter().flat_map(q8_0_numbers).take(head_dim));
                rows.flatten().collect()
            };
            let q8_0_cache = Cache {
                q: cache.q.clone(),
                k: blocks(&cache.k),
                v: blocks(&cache.v),
            };
            let same_numbers = Cache {
                q: cache.q.clone(),
                k: numbers(&q8_0_cache.k),
                v: numbers(&q8_0_cache.v),
            };
            let q8_0 = same_bits("attend_q8_0", |kernel| {
                attended(kernel, shape, &q8_0_cache, Kernel::attend::<Q8Block>)
            });
            let expected = attended(Kernel::best(), shape, &same_numbers, Kernel::attend::<f32>);
            assert_eq!(bits(&q8_0), bits(&expected), "q8_0, {shape:?}");
            for (found, expected) in f32.iter().zip(attended_f64(shape, &cache)) {
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-5,
                    "{shape:?}: {found}, not {expected}"
                );
            }
        }
    }
}

fn q8_0_numbers(block: &Q8Block) -> [f32; 32] {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    std::array::from_fn(|i| d * f32::from(block[2 + i] as i8))
}

#[test]
fn q8_0_is_within_half_a_step_everywhere() {
    let mut random = Random(0x5eed_0010);
    for (n, size) in [
        (128, 1.0),
        (96, 1e-3),
        (100, 6e4),
        (7, 1e-7),
        (32, 0.0),
        (64, 3e6),
    ] {
        let x: Vec<f32> = random.floats(n).iter().map(|x| x * size).collect();
        let mut all = Kernel::available().into_iter().map(|kernel| {
            let mut blocks = vec![[7; 34]; n.div_ceil(32)];
            kernel.store_q8_0(&x, &mut blocks);
            blocks
        });
        let blocks = all.next().unwrap();
        assert!(all.all(|other| other == blocks), "{n} of {size}");
        let mut found = blocks.iter().flat_map(q8_0_numbers);
        for x in x.chunks(32) {
            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            // Half a step; the scale is rounded to f16, of which the smallest is 2^-24.
            let allowed = largest / 127.0 * 0.501 + largest / 2000.0 + 127.0 / 33_554_432.0;
            for (x, y) in x.iter().zip(&mut found) {
                assert!((x - y).abs() <= allowed, "{y} for {x}");
            }
        }
        assert!(found.all(|zero| zero == 0.0), "the rest of a block is zero");
    }
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        for kernel in Kernel::available() {
            let mut blocks = [[0; 34]; 2];
            let mut x = [1.0; 64];
            x[40] = bad;
            kernel.store_q8_0(&x, &mut blocks);
            assert_eq!(q8_0_numbers(&blocks[0]), [1.0; 32].map(|x: f32| q8_one(x)));
            assert!(q8_0_numbers(&blocks[1]).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn q6_k_is_within_half_a_step_everywhere() {
    const SEED: u64 = 0x5eed_0012;
    let mut random = Random(SEED);
    let mut wide = random.wide_floats(2560);
    // Parts of zeros, of one sign, and with the same on both sides of zero.
    wide[..16].fill(0.0);
    wide[16..32].iter_mut().for_each(|x| *x = x.abs());
    wide[32..48].iter_mut().for_each(|x| *x = -x.abs());
    (wide[48], wide[49]) = (2e6, -2e6);
    (wide[64], wide[65]) = (-1e-3, 1e-3);
    let plain = |size: f32, random: &mut Random| -> Vec<f32> {
        random.floats(512).iter().map(|x| x * size).collect()
    };
    let rows = [
        wide,
        plain(1.0, &mut random),
        plain(0.02, &mut random),
        plain(1e-6, &mut random),
        plain(1e8, &mut random),
        vec![0.0; 256],
        vec![-1.0; 256],
    ];
    for x in rows {
        let mut all = Kernel::available().into_iter().map(|kernel| {
            let mut blocks = vec![[7; 210]; x.len() / 256];
            kernel.store_q6_k(&x, &mut blocks);
            blocks
        });
        let blocks = all.next().unwrap();
        assert!(all.all(|other| other == blocks), "seed {SEED:#x}");
        let bytes = SharedBytes::new(blocks.concat());
        let m = DenseMatrix::new(bytes, DenseType::Q6_K, 1, x.len()).unwrap();
        for (number, block) in x.chunks(256).enumerate() {
            let d = block.chunks(16).map(q6_k_step).fold(0.0, f32::max) / 127.0;
            // `sc` and `d` are rounded up; the smallest f16 is 2^-24.
            let more = d * 1.001 + 1.0 / 16_777_216.0;
            for (i, x) in block.iter().enumerate() {
                let step = q6_k_step(&block[i / 16 * 16..][..16]) + more;
                let y = dense_element(&m, 0, number * 256 + i);
                let is_near = (x - y).abs() <= step * 0.500_01;
                assert!(is_near, "{y} for {x}, step {step}, seed {SEED:#x}");
            }
        }
        for kernel in Kernel::available() {
            let mut read = vec![f32::NAN; x.len()];
            kernel.dense_row(&m, 0, &mut read);
            let elements: Vec<f32> = (0..x.len()).map(|c| dense_element(&m, 0, c)).collect();
            assert_eq!(bits(&read), bits(&elements), "{kernel}, seed {SEED:#x}");
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        for kernel in Kernel::available() {
            let mut blocks = [[0; 210]; 2];
            let mut x = [1.0; 512];
            x[300] = bad;
            kernel.store_q6_k(&x, &mut blocks);
            let bytes = SharedBytes::new(blocks.concat());
            let m = DenseMatrix::new(bytes, DenseType::Q6_K, 1, 512).unwrap();
            for c in 0..512 {
                let y = dense_element(&m, 0, c);
                assert_eq!(y.is_nan(), c >= 256, "{bad}, number {c}: {y}");
            }
        }
    }
}

/// Whatever the CPU, also another architecture's: the sum of these bytes stands here.
#[test]
fn codes_of_heads_do_not_depend_on_the_machine() {
    let mut random = Random(0x5eed_0015);
    let mut x = random.floats(16 * 256);
    for (i, part) in x.chunks_mut(16).enumerate() {
        let size = f32::from_bits((120 + i as u32 % 16) << 23);
        part.iter_mut().for_each(|x| *x *= size);
    }
    for kernel in Kernel::available() {
        let (mut q6_k, mut q8_0) = ([[0; 210]; 16], [[0; 34]; 128]);
        kernel.store_q6_k(&x, &mut q6_k);
        kernel.store_q8_0(&x, &mut q8_0);
        let sums = [fnv(q6_k.as_flattened()), fnv(q8_0.as_flattened())];
        let known = [0x5f82_244a_f527_70bf, 0x1c42_75c5_8a73_44d7];
        assert_eq!(sums, known, "{kernel}");
    }
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The step with which codes from -32 to 31 reach all of them.
fn q6_k_step(x: &[f32]) -> f32 {
    let largest = |sign: f32| x.iter().fold(0.0f32, |most, x| most.max(sign * x));
    let (below, above) = (largest(-1.0), largest(1.0));
    (below.max(above) / 32.0).max(below.min(above) / 31.5)
}

/// What becomes of 1.0 when it is the largest.
fn q8_one(x: f32) -> f32 {
    f16_to_f32(f32_to_f16(x / 127.0)) * 127.0
}

/// Tokens that look at one cache together, each from another position, or each alone: the same.
#[test]
fn tokens_do_not_see_each_other() {
    for head_dim in [64, 128, 100] {
        let mut random = Random(0x5eed_0011);
        let n_pos = [1, 64, 65, 150, 3];
        let q: Vec<Vec<f32>> = n_pos.iter().map(|_| random.floats(3 * head_dim)).collect();
        let (k, v) = (random.floats(150 * head_dim), random.floats(150 * head_dim));
        for kernel in Kernel::available() {
            let mut outs = vec![vec![f32::NAN; 3 * head_dim]; n_pos.len()];
            let mut scores = vec![vec![f32::NAN; 3 * 150]; n_pos.len()];
            let tokens = n_pos.iter().zip(&q).zip(outs.iter_mut().zip(&mut scores));
            let mut all: Vec<_> = tokens
                .map(|((&n_pos, q), (out, scores))| Attend {
                    q,
                    k: &k,
                    v: &v,
                    head_dim,
                    n_pos,
                    scale: 0.125,
                    scores,
                    out,
                })
                .collect();
            kernel.attend(&mut all);
            for ((&n_pos, q), together) in n_pos.iter().zip(&q).zip(&outs) {
                let mut alone = vec![f32::NAN; 3 * head_dim];
                kernel.attend(&mut [Attend {
                    q,
                    k: &k,
                    v: &v,
                    head_dim,
                    n_pos,
                    scale: 0.125,
                    scores: &mut vec![f32::NAN; 3 * n_pos],
                    out: &mut alone,
                }]);
                assert_eq!(
                    bits(&alone),
                    bits(together),
                    "{kernel}, {head_dim}, {n_pos}"
                );
            }
        }
    }
}

/// Attention in one call, or scores by ranges of positions, weights, and values by ranges of columns: the same.
#[test]
fn the_parts_of_attention_make_the_whole() {
    for (head_dim, n_pos) in [
        (128, 300),
        (64, 131),
        (96, 70),
        (256, 66),
        (100, 45),
        (20, 9),
    ] {
        for n_q in [1, 3, 4, 6] {
            let mut random = Random(0x5eed_0012);
            let mut halves = || -> Vec<u16> {
                let numbers = random.floats(n_pos * head_dim);
                numbers.into_iter().map(f32_to_f16).collect()
            };
            let (k, v) = (halves(), halves());
            let shape = Shape {
                n_q,
                head_dim,
                n_pos,
            };
            let q = random.floats(n_q * head_dim);
            let cache = Cache { q, k, v };
            for kernel in Kernel::available() {
                let whole = attended(kernel, shape, &cache, Kernel::attend::<u16>);
                for (n_part, n_columns) in [(1, 32), (37, 64), (64, 96), (n_pos, head_dim)] {
                    let parts = in_parts(kernel, shape, &cache, n_part, n_columns);
                    let case = format!("{kernel}, {shape:?}, {n_part}, {n_columns}");
                    assert_eq!(bits(&whole), bits(&parts), "{case}");
                }
            }
        }
    }
}

fn in_parts<E: CacheCell>(
    kernel: Kernel,
    shape: Shape,
    cache: &Cache<E>,
    n_part: usize,
    n_columns: usize,
) -> Vec<f32> {
    let Shape {
        n_q,
        head_dim,
        n_pos,
    } = shape;
    let cells = E::per_head(head_dim);
    let mut scores = vec![f32::NAN; n_q * n_pos];
    for start in (0..n_pos).step_by(n_part) {
        let range = start..n_pos.min(start + n_part);
        let mut some = vec![f32::NAN; n_q * range.len()];
        kernel.score(Score {
            q: &cache.q,
            k: &cache.k[range.start * cells..range.end * cells],
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            scores: &mut some,
        });
        let rows = scores.chunks_exact_mut(n_pos);
        for (row, some) in rows.zip(some.chunks_exact(range.len())) {
            row[range.clone()].copy_from_slice(some);
        }
    }
    scores
        .chunks_exact_mut(n_pos)
        .for_each(|row| kernel.softmax(row));
    let mut out = vec![f32::NAN; n_q * head_dim];
    for start in (0..head_dim).step_by(n_columns) {
        let columns = start..head_dim.min(start + n_columns);
        let mut some = vec![f32::NAN; n_q * columns.len()];
        kernel.weigh(Weigh {
            weights: &scores,
            n_pos,
            v: &cache.v,
            head_dim,
            columns: columns.clone(),
            out: &mut some,
        });
        let rows = out.chunks_exact_mut(head_dim);
        for (row, some) in rows.zip(some.chunks_exact(columns.len())) {
            row[columns.clone()].copy_from_slice(some);
        }
    }
    out
}

/// A head with its neighbours or alone: the same.
#[test]
fn heads_do_not_see_each_other() {
    let (n_q, n_pos) = if cfg!(miri) { (2, 9) } else { (5, 90) };
    let shape = Shape {
        n_q,
        head_dim: 64,
        n_pos,
    };
    let mut random = Random(0x5eed_000e);
    let mut cache = Cache {
        q: random.floats(n_q * 64),
        k: random.floats(n_pos * 64),
        v: random.floats(n_pos * 64),
    };
    let q = cache.q.clone();
    for kernel in Kernel::available() {
        cache.q = q.clone();
        let all = attended(kernel, shape, &cache, Kernel::attend::<f32>);
        for h in 0..n_q {
            cache.q = q[h * 64..][..64].to_vec();
            let alone = attended(
                kernel,
                Shape { n_q: 1, ..shape },
                &cache,
                Kernel::attend::<f32>,
            );
            assert_eq!(
                bits(&alone),
                bits(&all[h * 64..][..64]),
                "{kernel}, head {h}"
            );
        }
    }
}

#[test]
fn attention_keeps_nan_and_stays_finite_otherwise() {
    let shape = Shape {
        n_q: 2,
        head_dim: 32,
        n_pos: 40,
    };
    let mut random = Random(0x5eed_000f);
    for kernel in Kernel::available() {
        let mut cache = Cache {
            q: random.floats(64),
            k: random.floats(1280),
            v: random.floats(1280),
        };
        cache.q[0] = 1e20;
        let out = attended(kernel, shape, &cache, Kernel::attend::<f32>);
        assert!(out.iter().all(|x| x.is_finite()), "{kernel}: {out:?}");
        cache.q[0] = f32::NAN;
        let out = attended(kernel, shape, &cache, Kernel::attend::<f32>);
        assert!(out[..32].iter().all(|x| x.is_nan()), "{kernel}: {out:?}");
        assert!(out[32..].iter().all(|x| x.is_finite()), "{kernel}: {out:?}");
    }
}

#[test]
fn kernels_have_names() {
    assert!(Kernel::available().contains(&Kernel::best()));
    for kernel in Kernel::available() {
        assert_eq!(kernel.to_string().parse(), Ok(kernel));
        assert_eq!(Kernel::new(kernel.packing(), kernel.isa()), Some(kernel));
    }
    assert_eq!("i2_s".parse(), Ok(Kernel::best()));
    for packing in Packing::ALL {
        let kernel: Kernel = packing.name().parse().unwrap();
        assert_eq!(kernel.packing(), packing);
        assert!(Kernel::new(packing, Isa::Scalar).is_some());
    }
    assert_eq!(Kernel::new(Packing::Tl2, Isa::AvxVnni), None);
    for found in ["", "tl3", "i2_s/", "i2_s/sse9", "I2_S", "i2_s/avx2/x"] {
        let error = found.parse::<Kernel>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("`{found}` is no kernel; there are `")),
            "{error}"
        );
        assert!(error.contains("`i2_s/scalar`"), "{error}");
    }
    let error = "mmx".parse::<Isa>().unwrap_err().to_string();
    assert!(
        error.contains("`mmx`") && error.contains("`avx512_vnni`"),
        "{error}"
    );
}

/// Which kernels a CPU gets, where `EXPECTED_KERNELS` says it: names, best first, with commas between.
#[test]
fn this_cpu_gets_its_kernels() {
    let found: Vec<String> = Kernel::available().iter().map(Kernel::to_string).collect();
    let found = found.join(",");
    println!("{found}");
    match std::env::var("EXPECTED_KERNELS") {
        Ok(expected) => assert_eq!(found, expected),
        Err(_) => println!("skipped: EXPECTED_KERNELS does not name them"),
    }
}

#[test]
#[should_panic(expected = "x must have the columns of w")]
fn other_columns_are_refused() {
    let w = PackedMatrix::from_ternary(Packing::I2S, 1, 128, 1.0, &[0; 128]).unwrap();
    multiply(Kernel::best(), &w, 0..1, &QuantRows::new(1, 256));
}

#[test]
#[should_panic(expected = "rows 0..2 of a matrix with 1 rows")]
fn rows_beyond_the_end_are_refused() {
    let w = PackedMatrix::from_ternary(Packing::I2S, 1, 128, 1.0, &[0; 128]).unwrap();
    multiply(Kernel::best(), &w, 0..2, &QuantRows::new(1, 128));
}
