//! Products of quantized weights with int8 activations: to the bit what the processor's kernels compute.

use mmada::kernels::{Activations, Epilogue, Int8Rows, Scales, has_int8, matmul};
use mmada::tensor::{GgmlType, Matrix};

use crate::arguments;
use crate::device::{Device, Memory, races};
use crate::support::{Random, bits, portable};

/// A kernel, its tile and its shared memory, as product_int8.cu lays it out.
struct Kernel {
    name: String,
    scales: Scales,
    tile: [usize; 2],
    threads: usize,
}

impl Kernel {
    fn all(dtype: GgmlType) -> [Kernel; 3] {
        let kernel = |kind: &str, scales, tile, threads| Kernel {
            name: format!("product_{}_{kind}", dtype.name()),
            scales,
            tile,
            threads,
        };
        [
            kernel("blocks", Scales::Blocks, [64, 128], 256),
            kernel("wide", Scales::Wide, [64, 128], 256),
            kernel("few", Scales::Wide, [32, 32], 128),
        ]
    }

    fn shared(&self, dtype: GgmlType) -> usize {
        let [tokens, rows] = self.tile;
        use GgmlType::*;
        let groups = if matches!(dtype, Q6_K | Q3_K | Q2_K) { 16 } else { 8 };
        let offset = matches!(dtype, Q4_1 | Q5_1 | Q4_K | Q5_K | Q2_K);
        let floats = match (self.scales, offset) {
            (Scales::Wide, _) => rows + 1 + tokens + 1,
            (_, false) => groups * rows + 1 + 8 * tokens + 1,
            (_, true) => 2 * groups * rows + 8 * tokens + groups * tokens,
        };
        (rows + tokens) * 256 + 4 * floats
    }
}

/// The activations of a product on the device.
pub struct Quantized<'a> {
    pub q: Memory<'a, i8>,
    pub scale: Memory<'a, f32>,
    pub sums: Memory<'a, i16>,
}

pub fn quantize<'a>(device: &'a Device, x: &[f32], k: usize, scales: Scales) -> Quantized<'a> {
    let (n, group) = (x.len() / k, scales.group());
    let from = device.upload(x);
    let (q, scale) = (device.memory(n * k), device.memory(n * k.div_ceil(group)));
    let sums = device.memory(n * k / 16);
    let arguments = arguments![&from, k as i32, group as i32, &q, &scale, &sums];
    device.launch("quantize", [n, 1, 1], 256, 0, arguments);
    Quantized { q, scale, sums }
}

/// What the processor's kernels add to or store in `y`.
pub fn expected(w: &Matrix, x: &[f32], scales: Scales, y: &mut [f32], stride: usize, epilogue: Epilogue) {
    portable(|exec| {
        let mut rows = Int8Rows::default();
        rows.quantize(exec, x, w.cols(), scales).unwrap();
        matmul(exec, w, Activations::Int8(&rows), y, stride, epilogue).unwrap();
    });
}

fn compare(device: &Device, kernel: &Kernel, dtype: GgmlType, (rows, k, n): (usize, usize, usize), seed: u64) {
    let mut rng = Random(seed);
    let bytes = rng.weights(dtype, rows, k);
    let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
    let x = rng.floats(n * k);
    let stride = rows + 3;
    let mut y = rng.floats(n * stride);
    let add = !n.is_multiple_of(2);
    let epilogue = if add { Epilogue::Add } else { Epilogue::Store };
    let [tokens, tile_rows] = kernel.tile;
    let (on_device, weights, quantized) =
        (device.upload(&y), device.upload(&bytes), quantize(device, &x, k, kernel.scales));
    device.launch(
        &kernel.name,
        [n.div_ceil(tokens), rows.div_ceil(tile_rows), 1],
        kernel.threads,
        kernel.shared(dtype),
        arguments![
            &weights,
            w.row_bytes() as u64,
            rows as i32,
            &quantized.q,
            &quantized.scale,
            &quantized.sums,
            n as i32,
            k as i32,
            &on_device,
            stride as i32,
            i32::from(add)
        ],
    );
    expected(&w, &x, kernel.scales, &mut y, stride, epilogue);
    assert_eq!(bits(&on_device.download()), bits(&y), "{} of {rows} x {k} by {n}", kernel.name);
}

pub fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|dtype| has_int8(*dtype))
}

#[test]
fn int8_products_of_every_type_are_those_of_the_processor_to_the_bit() {
    let device = Device::new();
    assert_eq!(types().count(), 13);
    for dtype in types() {
        let short = dtype.block_len();
        for kernel in Kernel::all(dtype) {
            // less than a tile each way; a part of a step at the end, where blocks are short
            compare(&device, &kernel, dtype, (37, 256 + short, 19), 1 + short as u64);
            if !races() {
                // more than a tile each way
                compare(&device, &kernel, dtype, (131, 512, 70), 2);
                compare(&device, &kernel, dtype, (1, short, 1), 3);
            }
        }
    }
}

#[test]
fn an_infinite_scale_of_weights_or_activations_reaches_the_results_that_it_touches_alone() {
    let device = Device::new();
    let (dtype, rows, k, n) = (GgmlType::Q8_0, 5, 64, 3);
    let mut bytes = Random(7).weights(dtype, rows, k);
    let row_bytes = bytes.len() / rows;
    bytes[2 * row_bytes..2 * row_bytes + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    let mut x = Random(8).floats(n * k);
    x[k + 5] = f32::INFINITY;
    for kernel in Kernel::all(dtype) {
        let (weights, quantized) = (device.upload(&bytes), quantize(&device, &x, k, kernel.scales));
        let y = device.memory::<f32>(n * rows);
        let (q, scale, sums) = (&quantized.q, &quantized.scale, &quantized.sums);
        let (r, row_bytes) = (rows as i32, row_bytes as u64);
        let arguments = arguments![&weights, row_bytes, r, q, scale, sums, n as i32, k as i32, &y, r, 0];
        device.launch(&kernel.name, [1, 1, 1], kernel.threads, kernel.shared(dtype), arguments);
        for (i, v) in y.download().iter().enumerate() {
            let touched = i / rows == 1 || i % rows == 2;
            assert_eq!(v.is_finite(), !touched, "{}: result {i} is {v}", kernel.name);
        }
    }
}
