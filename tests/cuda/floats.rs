//! Products and convolutions in bfloat16, against sums in f64 of what their operands round to.

use mmada::tensor::{GgmlType, dequantize};

use crate::arguments;
use crate::device::{Argument, Device, races};
use crate::support::{Random, types};

/// Bytes of a tile of 64 tokens and 128 rows.
const SHARED: usize = (64 + 128) * 256;

fn rounded(v: f32) -> f64 {
    f64::from(half::bf16::from_f32(v).to_f32())
}

/// Weights, and what they are in bfloat16.
pub fn weights(rng: &mut Random, dtype: GgmlType, rows: usize, k: usize) -> (Vec<u8>, Vec<f64>) {
    let floats = rng.floats(rows * k);
    let bytes: Vec<u8> = match dtype {
        GgmlType::F32 => floats.iter().flat_map(|v| v.to_le_bytes()).collect(),
        GgmlType::F16 => floats.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        GgmlType::BF16 => floats.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => rng.weights(dtype, rows, k),
    };
    let mut decoded = vec![0.0; rows * k];
    dequantize(dtype, &bytes, &mut decoded).unwrap();
    (bytes, decoded.iter().map(|v| rounded(*v)).collect())
}

/// That `got` is `expected` within `relative` of the sum of the magnitudes of what was added.
pub fn assert_sums(got: &[f32], expected: &[(f64, f64)], relative: f64, what: &str) {
    for (i, (got, (sum, size))) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - sum).abs() <= relative * size, "{what}: result {i} is {got}, not {sum}");
    }
}

/// What is lost in f32; and where weights are scaled in another order than they are decoded in, which may round another way.
pub fn tolerance(dtype: GgmlType) -> f64 {
    if dtype.is_float() { 2e-6 } else { 1e-4 }
}

/// Operands of a product in bfloat16: x has rows of whole pieces of eight numbers.
pub struct Case {
    pub bytes: Vec<u8>,
    pub x: Vec<u16>,
    pub stride: usize,
    pub bias: Vec<f32>,
    /// What is there before, where results are added to it.
    pub y: Vec<f32>,
    pub add: bool,
    /// Sums, and the sums of the magnitudes of what they are of.
    pub expected: Vec<(f64, f64)>,
}

impl Case {
    /// Results are added to others if `n` is even; otherwise there is a bias.
    pub fn new(dtype: GgmlType, (rows, k, n): (usize, usize, usize)) -> Self {
        let mut rng = Random(rows as u64 + k as u64);
        let (bytes, w) = weights(&mut rng, dtype, rows, k);
        let stride = k.next_multiple_of(8);
        let x: Vec<u16> = rng.floats(n * stride).iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        let (bias, add) = (rng.floats(rows), n.is_multiple_of(2));
        let y = rng.floats(n * rows);
        let expected = (0..n * rows)
            .map(|at| {
                let (j, i) = (at / rows, at % rows);
                let start = if add { f64::from(y[at]) } else { f64::from(bias[i]) };
                (0..k).fold((start, start.abs()), |(sum, size), c| {
                    let term = w[i * k + c] * f64::from(half::bf16::from_bits(x[j * stride + c]).to_f32());
                    (sum + term, size + term.abs())
                })
            })
            .collect();
        Case { bytes, x, stride, bias, y, add, expected }
    }
}

fn compare(device: &Device, dtype: GgmlType, (rows, k, n): (usize, usize, usize)) {
    let case = Case::new(dtype, (rows, k, n));
    let (on_device, x, bytes, bias) =
        (device.upload(&case.y), device.upload(&case.x), device.upload(&case.bytes), device.upload(&case.bias));
    let bias = if case.add { Argument::from(0u64) } else { Argument::from(&bias) };
    let row_bytes = dtype.row_bytes(k).unwrap() as u64;
    let (r, stride, add) = (rows as i32, case.stride as i32, i32::from(case.add));
    let kernel = format!("product_{}_bf16", dtype.name());
    let arguments = arguments![&bytes, row_bytes, r, &x, stride, n as i32, k as i32, bias, &on_device, r, add];
    device.launch(&kernel, [n.div_ceil(64), rows.div_ceil(128), 1], 256, SHARED, arguments);
    assert_sums(&on_device.download(), &case.expected, tolerance(dtype), &format!("{kernel} of {rows} x {k} by {n}"));
}

#[test]
fn products_in_bfloat16_are_the_sums_of_the_rounded_operands() {
    let device = Device::new();
    for dtype in types() {
        let block = dtype.block_len();
        compare(&device, dtype, (37, 256 + block, 19));
        if !races() {
            compare(&device, dtype, (131, 512, 70));
            compare(&device, dtype, (1, block, 2));
        }
    }
    // rows whose length is no multiple of anything
    for dtype in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        compare(&device, dtype, (5, 147, 3));
    }
}

/// As in src/vq/conv.rs.
#[derive(Clone, Copy, Debug)]
enum Sampling {
    Same,
    Down,
    Up,
}

#[test]
fn convolutions_are_sums_over_the_window_at_every_scale() {
    let device = Device::new();
    for dtype in [GgmlType::F32, GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0] {
        for sampling in [Sampling::Same, Sampling::Down, Sampling::Up] {
            // quantized rows are whole blocks
            let channels = if dtype.is_float() { 24 } else { 32 };
            convolve(&device, dtype, sampling, (6, 5, channels, 7));
        }
    }
    if !races() {
        convolve(&device, GgmlType::F16, Sampling::Same, (9, 10, 8, 140));
        convolve(&device, GgmlType::BF16, Sampling::Up, (1, 1, 64, 3));
    }
}

fn convolve(device: &Device, dtype: GgmlType, sampling: Sampling, size: (usize, usize, usize, usize)) {
    let (height, width, channels, outputs) = size;
    let (out_height, out_width) = match sampling {
        Sampling::Same => (height, width),
        Sampling::Down => (height / 2, width / 2),
        Sampling::Up => (2 * height, 2 * width),
    };
    let (k, n) = (9 * channels, out_height * out_width);
    let mut rng = Random(n as u64);
    let (bytes, w) = weights(&mut rng, dtype, outputs, k);
    let x: Vec<u16> =
        rng.floats(height * width * channels).iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
    let (bias, y) = (rng.floats(outputs), rng.floats(n * outputs));
    // the picture with zeros around, repeated where it grows
    let pixel = |y: isize, x_: isize, c: usize| -> f64 {
        let (y, x_) = if matches!(sampling, Sampling::Up) { (y.div_euclid(2), x_.div_euclid(2)) } else { (y, x_) };
        if y < 0 || x_ < 0 || y >= height as isize || x_ >= width as isize {
            return 0.0;
        }
        f64::from(half::bf16::from_bits(x[(y as usize * width + x_ as usize) * channels + c]).to_f32())
    };
    let (step, padding) = if matches!(sampling, Sampling::Down) { (2, 0) } else { (1, 1) };
    let mut expected = Vec::new();
    for (at, before) in y.iter().enumerate() {
        let (position, output) = (at / outputs, at % outputs);
        let first = [position / out_width, position % out_width].map(|p| (step * p) as isize - padding);
        let start = f64::from(bias[output]) + f64::from(*before);
        let (mut sum, mut size) = (start, start.abs());
        for (i, w) in w[output * k..][..k].iter().enumerate() {
            let cell = i / channels;
            let term = w * pixel(first[0] + (cell / 3) as isize, first[1] + (cell % 3) as isize, i % channels);
            (sum, size) = (sum + term, size + term.abs());
        }
        expected.push((sum, size));
    }
    let (on_device, x, bytes, bias) =
        (device.upload(&y), device.upload(&x), device.upload(&bytes), device.upload(&bias));
    let kernel = format!("convolve_{}", dtype.name());
    let arguments = arguments![
        &bytes,
        dtype.row_bytes(k).unwrap() as u64,
        outputs as i32,
        &x,
        height as i32,
        width as i32,
        channels as i32,
        out_width as i32,
        sampling as i32,
        n as i32,
        &bias,
        &on_device,
        1
    ];
    device.launch(&kernel, [n.div_ceil(64), outputs.div_ceil(128), 1], 256, SHARED, arguments);
    assert_sums(&on_device.download(), &expected, tolerance(dtype), &format!("{kernel}, {sampling:?}, {size:?}"));
}
