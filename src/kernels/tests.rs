//! Every instruction set of this machine, by name, against plain arithmetic and against `portable`.

use super::elementwise::Pairs;
use super::isa::{self, Isa, LANES, Op};
use super::*;
use crate::parallel::{Exec, Threads};
use crate::tensor::{GgmlType, Matrix};

/// A small generator of test data (SplitMix64); the tests must not depend on the library's own.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// About normal, with a few outliers 30 times as large.
    pub fn float(&mut self) -> f32 {
        let sum: f32 = (0..6).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum();
        if self.bits().is_multiple_of(97) { sum * 30.0 } else { sum }
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.bits() as u8).collect()
    }
}

/// Where the f16 scales of a block lie.
fn scales(dtype: GgmlType) -> &'static [usize] {
    use GgmlType::*;
    match dtype {
        TQ1_0 => &[52],
        TQ2_0 => &[64],
        IQ1_M | MXFP4 | NVFP4 => &[], // other kinds of scales
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q6_K => &[208],
        Q3_K => &[108],
        Q2_K => &[80, 82],
        _ => &[0],
    }
}

/// Random blocks of any kind of weights: all bit patterns, with finite scales (subnormal, zero and negative among them).
fn random_weights(rng: &mut Random, dtype: GgmlType, rows: usize, cols: usize) -> Vec<u8> {
    if dtype.is_float() {
        let v = rng.floats(rows * cols);
        return match dtype {
            GgmlType::F32 => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            GgmlType::F16 => v.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            _ => v.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        };
    }
    let mut bytes = rng.bytes(rows * dtype.row_bytes(cols).unwrap());
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in scales(dtype) {
            let d = match rng.bits() % 16 {
                0 => half::f16::ZERO,
                1 => half::f16::from_bits(3),
                _ => half::f16::from_f32(rng.float() * 0.01),
            };
            block[at..at + 2].copy_from_slice(&d.to_le_bytes());
        }
        match dtype {
            // the f16 scale's four bits in each of four u16; its exponent between 2^-12 and 2^-5
            GgmlType::IQ1_M => block[55] = block[55] & 0x8f | 0x20,
            GgmlType::MXFP4 => block[0] = 100 + block[0] % 32,
            _ => {}
        }
    }
    bytes
}

fn dequantized(w: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; w.rows() * w.cols()];
    crate::tensor::dequantize(w.dtype(), w.data(), &mut out).unwrap();
    out
}

/// In f64: `y[j][i] = sum w x`, and the sum of the terms' magnitudes for a bound of the error.
fn reference(w: &[f32], x: &[f32], k: usize) -> (Vec<f64>, Vec<f64>) {
    let (rows, n) = (w.len() / k, x.len() / k);
    let mut y = vec![0.0; n * rows];
    let mut size = y.clone();
    for j in 0..n {
        for i in 0..rows {
            for c in 0..k {
                let t = f64::from(w[i * k + c]) * f64::from(x[j * k + c]);
                y[j * rows + i] += t;
                size[j * rows + i] += t.abs();
            }
        }
    }
    (y, size)
}

fn threads(n: usize) -> Threads {
    Threads::new(n).unwrap()
}

fn product(threads: &Threads, kernels: &'static Kernels, w: &Matrix, x: &[f32]) -> Vec<f32> {
    let exec = Exec::new(threads, kernels, None);
    if has_int8(w.dtype()) {
        return int8_product(threads, kernels, w, x, Scales::Blocks);
    }
    let mut y = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    matmul_f32(&exec, w, x, &mut y, w.rows(), Epilogue::Store).unwrap();
    y
}

fn int8_product(threads: &Threads, kernels: &'static Kernels, w: &Matrix, x: &[f32], scales: Scales) -> Vec<f32> {
    let exec = Exec::new(threads, kernels, None);
    let mut y = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let mut q = Int8Rows::default();
    // what lies in the buffers of an earlier, larger product must not matter
    q.quantize(&exec, &vec![f32::MAX; x.len() + 40 * w.cols()], w.cols(), scales).unwrap();
    q.quantize(&exec, x, w.cols(), scales).unwrap();
    matmul(&exec, w, Activations::Int8(&q), &mut y, w.rows(), Epilogue::Store).unwrap();
    y
}

/// `scripts/test-emulated` says in `MMADA_EXPECTED_SETS` what the processor has that it emulates: a set that is not found
/// there would not be tested.
#[test]
fn every_instruction_set_that_the_processor_has_is_found_by_its_name() {
    let names: Vec<&str> = Kernels::available().iter().map(Kernels::name).collect();
    assert_eq!(names[0], "portable");
    for (i, name) in names.iter().enumerate() {
        assert!(std::ptr::eq(Kernels::by_name(name).unwrap(), &Kernels::available()[i]), "two are called {name}");
    }
    assert_eq!(Kernels::best().name(), names[names.len() - 1]);
    assert!(Kernels::by_name("").is_none() && Kernels::by_name("Portable").is_none());
    if let Ok(expected) = std::env::var("MMADA_EXPECTED_SETS") {
        assert_eq!(names.join(" "), expected);
    }
}

const FLOATS: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];

/// Types that have neither int8 nor float kernels: dequantized panel by panel.
fn dequantized_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|t| !has_int8(*t) && !t.is_float() && crate::tensor::can_dequantize(*t))
}

fn int8_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|t| has_int8(*t))
}

#[test]
fn float_products_are_right_on_every_instruction_set_and_shape() {
    let mut rng = Random(1);
    let threads = threads(2);
    for dtype in FLOATS {
        for (rows, k, n) in [(1, 1, 1), (3, 10, 5), (16, 27, 12), (33, 257, 13), (70, 600, 31), (32, 1152, 100)] {
            let bytes = random_weights(&mut rng, dtype, rows, k);
            let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
            let x = rng.floats(n * k);
            let (want, size) = reference(&dequantized(&w), &x, k);
            for kernels in Kernels::available() {
                let y = product(&threads, kernels, &w, &x);
                for i in 0..y.len() {
                    let error = (f64::from(y[i]) - want[i]).abs();
                    assert!(error <= 1e-5 * size[i] + 1e-30, "{dtype} {} {rows}x{k}x{n}: {error}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn bfloat16_products_are_right_for_every_shape_and_any_number_of_threads() {
    let mut rng = Random(10);
    let round = |v: &f32| half::bf16::from_f32(*v).to_f32();
    for kernels in Kernels::available().iter().filter(|k| k.has_bf16()) {
        for dtype in GgmlType::all().filter(|t| crate::tensor::can_dequantize(*t)) {
            let (block, float) = (dtype.block_len(), dtype.is_float());
            for (rows, k, n) in
                [(1, 1usize, 1), (3, 10, 5), (16, 27, 12), (33, 513, 13), (70, 1026, 31), (140, 64, 301)]
            {
                let k = if float { k } else { k.div_ceil(100) * block };
                let bytes = random_weights(&mut rng, dtype, rows, k);
                let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
                let x = rng.floats(n * k);
                let rounded: Vec<f32> = dequantized(&w).iter().map(round).collect();
                let (want, size) = reference(&rounded, &x.iter().map(round).collect::<Vec<_>>(), k);
                let mut first = Vec::new();
                for count in [1, 3] {
                    let threads = threads(count);
                    let exec = Exec::new(&threads, kernels, None);
                    let mut input = Bf16Rows::default();
                    input.round(&exec, &x, k).unwrap();
                    let mut y = vec![1.0; n * rows];
                    matmul(&exec, &w, Activations::Bf16(&input), &mut y, rows, Epilogue::Add).unwrap();
                    for i in 0..y.len() {
                        let error = (f64::from(y[i]) - 1.0 - want[i]).abs();
                        assert!(
                            error <= 1e-5 * (1.0 + size[i]),
                            "{dtype} {rows}x{k}x{n}: {} for {}",
                            y[i] - 1.0,
                            want[i]
                        );
                    }
                    assert!(first.is_empty() || first == y);
                    first = y;
                }
            }
        }
    }
}

const SCALES: [Scales; 3] = [Scales::Blocks, Scales::Mixed, Scales::Wide];

#[test]
fn int8_products_are_bit_identical_on_every_instruction_set_and_near_the_dequantized_product() {
    let mut rng = Random(2);
    let threads = threads(2);
    for dtype in int8_types() {
        for (rows, blocks, n) in [(1, 1, 1), (5, 3, 7), (33, 2, 13), (70, 5, 25), (65, 11, 33), (130, 19, 70)] {
            let k = blocks * dtype.block_len();
            let bytes = random_weights(&mut rng, dtype, rows, k);
            let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
            let x = rng.floats(n * k);
            let (want, size) = reference(&dequantized(&w), &x, k);
            for scales in SCALES {
                let specification = int8_product(&threads, Kernels::by_name("portable").unwrap(), &w, &x, scales);
                for i in 0..want.len() {
                    let error = (f64::from(specification[i]) - want[i]).abs();
                    // an outlier of 30 sigma coarsens its group to steps of about 0.1; scales of random blocks differ by
                    // orders of magnitude, which one scale for all of them cannot hold
                    let bound = match scales {
                        Scales::Blocks => 0.12 * size[i],
                        Scales::Mixed | Scales::Wide => wide_bound(&w, &x, i, scales),
                    };
                    assert!(
                        error <= bound + 1e-30,
                        "{dtype} {scales:?} {rows}x{k}x{n}: {} for {}, error {error}, bound {bound}",
                        specification[i],
                        want[i]
                    );
                }
                for kernels in Kernels::available() {
                    let y = int8_product(&threads, kernels, &w, &x, scales);
                    let differ = y.iter().zip(&specification).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differ, None, "{dtype} {scales:?} {rows}x{k}x{n} {}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_in_activations_reach_the_results_that_they_touch_alone() {
    let mut rng = Random(31);
    let threads = threads(1);
    for dtype in int8_types() {
        let (rows, k, n) = (19, 768, 6);
        let bytes = random_weights(&mut rng, dtype, rows, k);
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        let mut x = rng.floats(n * k);
        // at the beginning of a group, in its middle, and as its last
        (x[k], x[2 * k + 300], x[4 * k + 767]) = (f32::NAN, -f32::NAN, f32::INFINITY);
        for (scales, kernels) in SCALES.into_iter().flat_map(|s| Kernels::available().iter().map(move |k| (s, k))) {
            let y = int8_product(&threads, kernels, &w, &x, scales);
            for (i, v) in y.iter().enumerate() {
                let touched = [1, 2, 4].contains(&(i / rows));
                assert_eq!(v.is_finite(), !touched, "{dtype} {scales:?} {}: result {i} is {v}", kernels.name());
            }
        }
    }
}

/// What wide scales may do to output `i`: half a step of each operand against the other, and both, in every 256
/// elements. A step is the largest magnitude over 127; the weights' is that of the largest value that their scales
/// allow, which is at most 16 times the largest there is, or none where they keep their own.
fn wide_bound(w: &Matrix, x: &[f32], i: usize, scales: Scales) -> f64 {
    let k = w.cols();
    let weights = dequantized(&w.slice(i % w.rows()..i % w.rows() + 1));
    let x = &x[i / w.rows() * k..][..k];
    let peak = |v: &[f32]| v.iter().fold(0.0f64, |peak, v| peak.max(f64::from(v.abs())));
    let sum = |v: &[f32]| v.iter().map(|v| f64::from(v.abs())).sum::<f64>();
    let group = |(w, x): (&[f32], &[f32])| {
        let dw = if scales == Scales::Wide { 16.0 * peak(w) / 254.0 } else { 0.0 };
        let dx = peak(x) / 254.0;
        dw * sum(x) + dx * sum(w) + dw * dx * w.len() as f64
    };
    weights.chunks(256).zip(x.chunks(256)).map(group).sum::<f64>() * 1.01
}

/// A product of some rows of `w` with `x`, in any arithmetic, added to what is there.
fn any_product(exec: &Exec, w: Operand, x: &[f32], arithmetic: Arithmetic) -> Vec<f32> {
    let (k, rows) = (w.matrix().cols(), w.matrix().rows());
    let mut y: Vec<f32> = (0..x.len() / k * rows).map(|i| i as f32 * 0.25 - 3.0).collect();
    let (mut int8, mut bf16) = (Int8Rows::default(), Bf16Rows::default());
    let x = match arithmetic {
        Arithmetic::F32 => Activations::F32 { x, k },
        Arithmetic::Bf16 => {
            bf16.round(exec, x, k).unwrap();
            Activations::Bf16(&bf16)
        }
        Arithmetic::Int8(scales) => {
            int8.quantize(exec, x, k, scales).unwrap();
            Activations::Int8(&int8)
        }
    };
    matmul(exec, w, x, &mut y, rows, Epilogue::Add).unwrap();
    y
}

#[test]
fn packed_weights_give_the_same_bits_whole_and_in_parts() {
    let mut rng = Random(23);
    let (one, many) = (threads(1), threads(5));
    let mut packings = 0;
    for dtype in GgmlType::all().filter(|t| t.is_float() || crate::tensor::can_dequantize(*t)) {
        for (rows, k, n) in [(1, 1usize, 1), (67, 3, 33), (151, 37, 18), (260, 17, 5)] {
            let k = (32 * k).next_multiple_of(dtype.block_len());
            let bytes = random_weights(&mut rng, dtype, rows, k);
            let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
            let x = rng.floats(n * k);
            for kernels in Kernels::available() {
                let mut all = vec![Arithmetic::F32];
                if has_int8(dtype) {
                    all.extend(SCALES.map(Arithmetic::Int8));
                }
                if kernels.has_bf16() {
                    all.push(Arithmetic::Bf16);
                }
                for arithmetic in all {
                    let exec = Exec::new(&many, kernels, None);
                    let packed = Packed::new(&exec, &w, arithmetic).unwrap();
                    assert_eq!(packed.is_none(), arithmetic == Arithmetic::F32, "{dtype} {arithmetic:?}");
                    let bytes = Packed::bytes(kernels, dtype, (rows, k), arithmetic);
                    let Some(packed) = packed else {
                        assert_eq!(bytes, 0);
                        continue;
                    };
                    packings += 1;
                    let of_a_weight = if arithmetic == Arithmetic::Bf16 { 2 } else { 1 };
                    assert!(bytes >= rows * k * of_a_weight, "{dtype} {arithmetic:?}: {bytes}");
                    let operand = Operand::with_packed(w, &packed);
                    for part in [0..rows, rows / 3..rows, 0..rows.div_ceil(2), rows * 2 / 3..rows * 2 / 3 + 1] {
                        let plain = Operand::from(&w).slice(part.clone());
                        let want = any_product(&Exec::new(&one, kernels, None), plain, &x, arithmetic);
                        let got = any_product(&exec, operand.slice(part.clone()), &x, arithmetic);
                        let same = want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{dtype} {} {arithmetic:?} {rows}x{k} rows {part:?}", kernels.name());
                    }
                }
            }
        }
    }
    assert!(packings >= 2 * 4 * int8_types().count(), "{packings}");
}

#[test]
fn panels_of_another_arithmetic_are_refused() {
    let threads = threads(1);
    let exec = Exec::new(&threads, Kernels::best(), None);
    let bytes = random_weights(&mut Random(24), GgmlType::Q4_0, 3, 64);
    let w = Matrix::new(GgmlType::Q4_0, 3, 64, &bytes).unwrap();
    let packed = Packed::new(&exec, &w, Arithmetic::Int8(Scales::Wide)).unwrap().unwrap();
    let multiply = |scales| any_product(&exec, Operand::with_packed(w, &packed), &[1.0; 64], Arithmetic::Int8(scales));
    assert_eq!(multiply(Scales::Wide).len(), 3);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| multiply(Scales::Blocks)));
    assert!(refused.is_err());
}

#[test]
fn wide_scales_add_little_to_the_error_of_weights_as_they_are() {
    let mut rng = Random(21);
    let threads = threads(2);
    let (rows, k, n) = (64, 1024, 32);
    let weights: Vec<f32> = rng.floats(rows * k).iter().map(|v| v.clamp(-2.0, 2.0)).collect();
    let x: Vec<f32> = rng.floats(n * k).iter().map(|v| v.clamp(-2.0, 2.0)).collect();
    for dtype in int8_types().filter(|t| crate::tensor::can_quantize(*t)) {
        let mut bytes = vec![0; rows * dtype.row_bytes(k).unwrap()];
        crate::tensor::quantize(dtype, &weights, &mut bytes).unwrap();
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        let (want, _) = reference(&dequantized(&w), &x, k);
        let size = want.iter().map(|v| v * v).sum::<f64>();
        for kernels in Kernels::available() {
            for (scales, bound) in [(Scales::Blocks, 0.008), (Scales::Wide, 0.016)] {
                let y = int8_product(&threads, kernels, &w, &x, scales);
                let error = y.iter().zip(&want).map(|(y, want)| (f64::from(*y) - want).powi(2)).sum::<f64>();
                let relative = (error / size).sqrt();
                assert!(relative < bound, "{dtype} {scales:?} {}: {relative}", kernels.name());
            }
        }
    }
}

#[test]
fn int8_products_of_exactly_representable_activations_are_exact() {
    let mut rng = Random(3);
    let threads = threads(1);
    for dtype in int8_types() {
        let (rows, k, n) = (35, 3 * dtype.block_len(), 9);
        let bytes = random_weights(&mut rng, dtype, rows, k);
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        // every group holds +-127, so its scale is 1 and whole numbers survive
        let x: Vec<f32> = (0..n * k)
            .map(|i| {
                if i % 32 == 5 {
                    if rng.bits() & 1 == 0 { 127.0 } else { -127.0 }
                } else {
                    (rng.bits() % 255) as f32 - 127.0
                }
            })
            .collect();
        let (want, size) = reference(&dequantized(&w), &x, k);
        // 256 elements hold one as well, so that is the scale of mixed ones
        for (kernels, scales) in Kernels::available().iter().flat_map(|k| [(k, Scales::Blocks), (k, Scales::Mixed)]) {
            let got = int8_product(&threads, kernels, &w, &x, scales);
            for (y, (want, size)) in got.iter().zip(want.iter().zip(&size)) {
                assert!(
                    (f64::from(*y) - want).abs() <= 2e-6 * size + 1e-30,
                    "{dtype} {scales:?} {}: {y} for {want}",
                    kernels.name()
                );
            }
        }
    }
}

#[test]
fn the_most_extreme_bytes_do_not_saturate() {
    let threads = threads(1);
    let k = 1024;
    for (weight, activation) in [(-128i8, 127.0f32), (-128, -127.0), (127, 127.0), (127, -127.0)] {
        let mut bytes = Vec::new();
        for _ in 0..k / 32 * 17 {
            bytes.extend_from_slice(&half::f16::ONE.to_le_bytes());
            bytes.extend_from_slice(&[weight as u8; 32]);
        }
        let w = Matrix::new(GgmlType::Q8_0, 17, k, &bytes).unwrap();
        let x = vec![activation; 3 * k];
        for kernels in Kernels::available() {
            let want = f32::from(weight) * activation * k as f32;
            for scales in SCALES {
                let y = int8_product(&threads, kernels, &w, &x, scales);
                // a wide scale of 128 / 127 is rounded once
                assert!(y.iter().all(|y| (y / want - 1.0).abs() < 1e-6), "{} {scales:?}", kernels.name());
                assert!(scales == Scales::Wide || y.iter().all(|y| *y == want), "{}", kernels.name());
            }
        }
    }
}

#[test]
fn every_block_type_can_be_multiplied_with_float_activations() {
    let mut rng = Random(4);
    let threads = threads(2);
    assert_eq!(dequantized_types().count(), 10);
    for dtype in int8_types().chain(dequantized_types()) {
        let (rows, k, n) = (35, 3 * dtype.block_len(), 6);
        let bytes = random_weights(&mut rng, dtype, rows, k);
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        let x = rng.floats(n * k);
        let (want, size) = reference(&dequantized(&w), &x, k);
        for kernels in Kernels::available() {
            let mut y = vec![0.0; n * rows];
            matmul_f32(&Exec::new(&threads, kernels, None), &w, &x, &mut y, rows, Epilogue::Store).unwrap();
            for i in 0..y.len() {
                assert!((f64::from(y[i]) - want[i]).abs() <= 1e-5 * size[i] + 1e-30, "{dtype} {}", kernels.name());
            }
        }
    }
}

#[test]
fn weights_are_encoded_to_the_same_bits_on_every_instruction_set() {
    let mut rng = Random(11);
    let k = 1024;
    for dtype in GgmlType::all().filter(|t| crate::tensor::can_quantize(*t)) {
        for exponent in [-140, -30, -20, -6, 0, 9] {
            let mut x: Vec<f32> = rng.floats(k).iter().map(|v| v * 2f32.powi(exponent)).collect();
            x[256..300].fill(0.0);
            x[512..600].fill(-0.37 * 2f32.powi(exponent));
            x[700] = -0.0;
            let importance: Vec<f32> = (0..k).map(|i| if i % 50 == 3 { 0.0 } else { rng.float().exp() }).collect();
            for weights in [None, Some(&importance[..])] {
                let mut want = vec![0; dtype.row_bytes(k).unwrap()];
                crate::tensor::quantize_weighted(dtype, &x, weights, &mut want).unwrap();
                for kernels in Kernels::available() {
                    let mut got = vec![1; want.len()];
                    kernels.quantize(dtype, &x, weights, &mut got).unwrap();
                    let differ = got.iter().zip(&want).position(|(a, b)| a != b);
                    assert_eq!(differ, None, "{dtype} {} 2^{exponent}", kernels.name());
                }
            }
        }
        let refused =
            Kernels::best().quantize(dtype, &vec![1.0; k], Some(&[1.0]), &mut vec![0; dtype.row_bytes(k).unwrap()]);
        assert_eq!(refused.unwrap_err().to_string(), "1 importance weights were given for 1024 elements");
    }
}

#[test]
fn weights_are_decoded_and_compared_to_the_same_bits_on_every_instruction_set() {
    let mut rng = Random(12);
    let k = 2 * 1024 + 256;
    let x = rng.floats(k);
    for dtype in GgmlType::all().filter(|t| crate::tensor::can_dequantize(*t)) {
        // Any bytes are blocks; scales that are NaN or infinite among them.
        let bytes: Vec<u8> = (0..dtype.row_bytes(k).unwrap()).map(|_| (rng.float() * 1e6) as i32 as u8).collect();
        let mut want = vec![0.0; k];
        crate::tensor::dequantize(dtype, &bytes, &mut want).unwrap();
        let bits = |x: &[f32]| x.iter().map(|v| if v.is_nan() { 0 } else { v.to_bits() }).collect::<Vec<_>>();
        for kernels in Kernels::available() {
            let mut got = vec![1.0; k];
            kernels.dequantize(dtype, &bytes, &mut got).unwrap();
            assert_eq!(bits(&got), bits(&want), "{dtype} {}", kernels.name());
            assert!(kernels.dequantize(dtype, &bytes[1..], &mut got).is_err(), "{dtype}");
        }
    }
    for len in [0, 1, 15, 16, 1023, 1040, k] {
        let (a, b) = (&x[..len], &x[k - len..]);
        let squares = |f: &dyn Fn(usize) -> f64| (0..len).map(|i| f(i).powi(2)).sum::<f64>();
        let want = (squares(&|i| f64::from(a[i])), squares(&|i| f64::from(a[i] - b[i])));
        let portable = Kernels::available()[0].squares(a, b);
        assert!((portable.0 - want.0).abs() <= 1e-5 * want.0 && (portable.1 - want.1).abs() <= 1e-5 * want.1, "{len}");
        for kernels in Kernels::available() {
            assert_eq!(kernels.squares(a, b), portable, "{len} {}", kernels.name());
        }
    }
}

#[test]
fn adding_and_strides_leave_their_neighbours_alone() {
    let mut rng = Random(5);
    let threads = threads(3);
    let (rows, k, n, stride) = (21, 300, 50, 29);
    let w_data = rng.floats(rows * k);
    let w = Matrix::from_f32(rows, k, &w_data).unwrap();
    let x = rng.floats(n * k);
    for kernels in Kernels::available() {
        let exec = Exec::new(&threads, kernels, None);
        let before = rng.floats(n * stride);
        let (mut stored, mut added) = (before.clone(), before.clone());
        matmul_f32(&exec, &w, &x, &mut stored, stride, Epilogue::Store).unwrap();
        matmul_f32(&exec, &w, &x, &mut added, stride, Epilogue::Add).unwrap();
        for i in 0..n * stride {
            if i % stride >= rows {
                assert_eq!((stored[i], added[i]), (before[i], before[i]));
            } else {
                assert!((added[i] - before[i] - stored[i]).abs() < 1e-3, "{}", kernels.name());
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let mut rng = Random(6);
    for dtype in [GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K] {
        let (rows, k, n) = (45, 512, 301);
        let bytes = random_weights(&mut rng, dtype, rows, k);
        let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
        let x = rng.floats(n * k);
        for kernels in Kernels::available() {
            for scales in SCALES {
                let run = |count| match has_int8(dtype) {
                    true => int8_product(&threads(count), kernels, &w, &x, scales),
                    false => product(&threads(count), kernels, &w, &x),
                };
                let one = run(1);
                for count in [2, 3, 7, 16] {
                    let same = one.iter().zip(&run(count)).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{dtype} {} {scales:?}, {count} threads", kernels.name());
                }
            }
        }
    }
}

struct Exp<'a>(&'a mut [f32]);
impl Op for Exp<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        for c in self.0.as_chunks_mut::<LANES>().0 {
            isa.store(isa::exp(isa, isa.load(c)), c);
        }
    }
}

#[test]
fn exp_is_within_two_ulp_and_has_sane_ends() {
    for kernels in Kernels::available() {
        let x: Vec<f32> = (0..160_000).map(|i| -87.0 + i as f32 * (175.0 / 160_000.0)).collect();
        let mut y = x.clone();
        kernels.run(Exp(&mut y));
        for (x, y) in x.iter().zip(&y) {
            let want = f64::from(*x).exp();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            assert!((f64::from(*y) - want).abs() <= 2.0 * ulp, "{}: exp({x}) = {y}", kernels.name());
        }
        let mut ends = [0.0f32; LANES];
        ends[..4].copy_from_slice(&[f32::NEG_INFINITY, -88.0, 0.0, 200.0]);
        kernels.run(Exp(&mut ends));
        assert_eq!(ends[..3], [0.0, 0.0, 1.0]);
        assert!(ends[3].is_finite() && ends[3] > 1e38);
    }
}

#[test]
fn norm_gate_and_softmax_agree_with_the_definition() {
    let mut rng = Random(8);
    let threads = threads(2);
    for kernels in Kernels::available() {
        let exec = Exec::new(&threads, kernels, None);
        for d in [1, 15, 16, 37, 256] {
            let (x, w, n) = (rng.floats(11 * d), rng.floats(d), 11);
            let mut out = vec![0.0; n * d];
            elementwise::rms_norm(&exec, &x, &w, 1e-5, &mut out);
            let mut soft = x.clone();
            elementwise::softmax_rows(&exec, &mut soft, d, 0.5);
            let up = rng.floats(n * d);
            let mut gate = x.clone();
            elementwise::silu_mul(&exec, &mut gate, &up);
            for r in 0..n {
                let row = &x[r * d..][..d];
                let mean: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / d as f64;
                let e: Vec<f64> = row.iter().map(|v| (0.5 * f64::from(*v)).exp()).collect();
                let total: f64 = e.iter().sum();
                for c in 0..d {
                    let (i, v) = (r * d + c, f64::from(row[c]));
                    let norm = v / (mean + 1e-5).sqrt() * f64::from(w[c]);
                    assert!((f64::from(out[i]) - norm).abs() < 1e-5 * (1.0 + norm.abs()));
                    assert!((f64::from(soft[i]) - e[c] / total).abs() < 1e-6);
                    let silu = v / (1.0 + (-v).exp()) * f64::from(up[i]);
                    assert!((f64::from(gate[i]) - silu).abs() < 1e-5 * (1.0 + silu.abs()));
                }
            }
        }
    }
}

#[test]
fn rotary_positions_rotate_pairs_half_a_head_apart() {
    let mut rng = Random(9);
    let threads = threads(2);
    for (heads, dim) in [(3, 10), (2, 64), (1, 38)] {
        let positions = [0u32, 1, 7, 40];
        let rope = elementwise::Rope::new(41, dim, 500_000.0, Pairs::Halves).unwrap();
        let x = rng.floats(positions.len() * heads * dim);
        let mut portable = x.clone();
        rope.apply(&Exec::new(&threads, &Kernels::available()[0], None), &mut portable, &positions);
        for kernels in Kernels::available() {
            let mut y = x.clone();
            rope.apply(&Exec::new(&threads, kernels, None), &mut y, &positions);
            assert_eq!(y, portable, "{}", kernels.name());
        }
        for (r, p) in positions.iter().enumerate() {
            for (h, i) in (0..heads).flat_map(|h| (0..dim / 2).map(move |i| (h, i))) {
                let at = (r * heads + h) * dim + i;
                let angle = f64::from(*p) * 500_000f64.powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (f64::from(x[at]), f64::from(x[at + dim / 2]));
                let (y, z) = (f64::from(portable[at]), f64::from(portable[at + dim / 2]));
                assert!((y - (a * angle.cos() - b * angle.sin())).abs() < 1e-4);
                assert!((z - (b * angle.cos() + a * angle.sin())).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn a_file_s_order_of_rows_does_not_change_what_rotation_gives() {
    let threads = threads(2);
    let exec = Exec::new(&threads, Kernels::best(), None);
    for (heads, dim) in [(3, 10), (1, 2), (2, elementwise::MAX_NEIGHBOURS_HEAD)] {
        let positions = [3u32, 0, 39];
        let mut halves = Random(10).floats(positions.len() * heads * dim);
        let pair = |head: &[f32]| (0..dim).map(|i| head[i / 2 + i % 2 * (dim / 2)]).collect::<Vec<_>>();
        let mut neighbours: Vec<f32> = halves.chunks_exact(dim).flat_map(pair).collect();
        for (pairs, x) in [(Pairs::Halves, &mut halves), (Pairs::Neighbours, &mut neighbours)] {
            elementwise::Rope::new(40, dim, 500_000.0, pairs).unwrap().apply(&exec, x, &positions);
        }
        assert_eq!(halves, neighbours, "{heads} heads of {dim}");
    }
}
