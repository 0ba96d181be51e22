//! Products of weights that are unpacked first, on Hopper's tensor cores: int8 to the bit what the processor's kernels compute.

use mmada::kernels::{Epilogue, Scales};
use mmada::tensor::{GgmlType, Matrix};

use crate::arguments;
use crate::device::{Argument, Device, Memory, races};
use crate::floats::{Case, assert_sums, tolerance};
use crate::products::{expected, quantize, types};
use crate::support::{Random, bits, to_bf16, types as all_types};

/// Rows of a tile, and threads.
const ROWS: usize = 128;
const THREADS: usize = 384;

/// A kernel of the table in hopper.cu.
struct Kernel {
    name: &'static str,
    tokens: usize,
    shared: usize,
}

const BF16: [Kernel; 2] = [
    Kernel { name: "product_bf16_256_sm90", tokens: 256, shared: 197712 },
    Kernel { name: "product_bf16_128_sm90", tokens: 128, shared: 197744 },
];
const WIDE: [Kernel; 2] = [
    Kernel { name: "product_wide_256_sm90", tokens: 256, shared: 203904 },
    Kernel { name: "product_wide_128_sm90", tokens: 128, shared: 203968 },
];
const BLOCKS: Kernel = Kernel { name: "product_blocks_sm90", tokens: 128, shared: 148608 };
const BLOCKS_WITH_OFFSET: Kernel = Kernel { name: "product_blocks_offset_sm90", tokens: 128, shared: 164928 };

impl Kernel {
    /// Runs it with two blocks of threads at most, so that they have several tiles where there are.
    fn launch(&self, device: &Device, (rows, n): (usize, usize), arguments: &[Argument]) {
        let tiles = rows.div_ceil(ROWS) * n.div_ceil(self.tokens);
        device.launch(self.name, [tiles.min(2), 1, 1], THREADS, self.shared, arguments);
    }
}

/// Rows, k and tokens: less than a tile; several tiles, with remainders in every direction, and more of k than there are stages.
fn shapes(block: usize) -> Vec<(usize, usize, usize)> {
    let small = (37, 256 + block, 19);
    if races() { vec![small] } else { vec![small, (1, block, 2), (131, 1024 + block, 70), (259, 512 + block, 267)] }
}

/// Unpacked weights on the device; those of types without offsets have none.
struct Unpacked<'a> {
    q: Memory<'a, i8>,
    scale: Memory<'a, f32>,
    offset: Memory<'a, f32>,
}

fn unpack<'a>(device: &'a Device, w: &Matrix, bytes: &[u8], scales: Scales) -> Unpacked<'a> {
    let (rows, k) = (w.rows(), w.cols());
    let (from, name) = (device.upload(bytes), w.dtype().name());
    let groups = rows * k.div_ceil(scales.group());
    let to = Unpacked { q: device.memory(rows * k), scale: device.memory(groups), offset: device.memory(groups) };
    let (row_bytes, r, k) = (w.row_bytes() as u64, rows as i32, k as i32);
    let blocks = |units: usize| [units.div_ceil(256), 1, 1];
    match scales {
        Scales::Wide => {
            let arguments = arguments![&from, row_bytes, r, k, &to.q, &to.scale];
            device.launch(&format!("unpack_{name}_wide"), blocks(groups * 8), 256, 0, arguments);
        }
        Scales::Blocks | Scales::Mixed => {
            let arguments = arguments![&from, row_bytes, r, k, &to.q, &to.scale, &to.offset];
            device.launch(&format!("unpack_{name}_blocks"), blocks(groups), 256, 0, arguments);
        }
    }
    to
}

fn compare_int8(device: &Device, kernel: &Kernel, dtype: GgmlType, scales: Scales, shape: (usize, usize, usize)) {
    let (rows, k, n) = shape;
    let mut rng = Random(rows as u64 + k as u64);
    let bytes = rng.weights(dtype, rows, k);
    let w = Matrix::new(dtype, rows, k, &bytes).unwrap();
    let x = rng.floats(n * k);
    let stride = rows + 3;
    let mut y = rng.floats(n * stride);
    let add = n.is_multiple_of(2);
    let (on_device, unpacked, quantized) =
        (device.upload(&y), unpack(device, &w, &bytes, scales), quantize(device, &x, k, scales));
    let arguments = arguments![
        &device.tensor_map(&unpacked.q, k, ROWS),
        &device.tensor_map(&quantized.q, k, kernel.tokens),
        0,
        rows as i32,
        n as i32,
        k as i32,
        &unpacked.scale,
        &unpacked.offset,
        &quantized.scale,
        &quantized.sums,
        &on_device,
        stride as i32,
        i32::from(add)
    ];
    kernel.launch(device, (rows, n), arguments);
    expected(&w, &x, scales, &mut y, stride, if add { Epilogue::Add } else { Epilogue::Store });
    let what = format!("{} of {rows} x {k} in {} by {n}", kernel.name, dtype.name());
    assert_eq!(bits(&on_device.download()), bits(&y), "{what}");
}

#[test]
fn hopper_products_with_wide_scales_are_those_of_the_processor_to_the_bit() {
    let device = Device::new();
    if !device.has_hopper() {
        return;
    }
    for dtype in types() {
        let some = if dtype == GgmlType::Q8_0 || dtype == GgmlType::Q4_K { usize::MAX } else { 1 };
        for shape in shapes(dtype.block_len()).into_iter().take(some) {
            for kernel in &WIDE {
                compare_int8(&device, kernel, dtype, Scales::Wide, shape);
            }
        }
    }
}

#[test]
fn hopper_products_with_the_scales_of_blocks_are_those_of_the_processor_to_the_bit() {
    let device = Device::new();
    if !device.has_hopper() {
        return;
    }
    use GgmlType::*;
    let fine = |dtype: &GgmlType| matches!(dtype, Q6_K | Q3_K | Q2_K);
    for dtype in types().filter(|dtype| !fine(dtype)) {
        let kernel = if matches!(dtype, Q4_1 | Q5_1 | Q4_K | Q5_K) { &BLOCKS_WITH_OFFSET } else { &BLOCKS };
        let some = if matches!(dtype, Q8_0 | Q4_1) { usize::MAX } else { 1 };
        for shape in shapes(dtype.block_len()).into_iter().take(some) {
            compare_int8(&device, kernel, dtype, Scales::Blocks, shape);
        }
    }
}

fn compare_bf16(device: &Device, kernel: &Kernel, dtype: GgmlType, unpacked: bool, shape: (usize, usize, usize)) {
    let (rows, k, n) = shape;
    let case = Case::new(dtype, shape);
    let (mut w, mut row_bytes) = (device.upload(&case.bytes), dtype.row_bytes(k).unwrap() as u64);
    let (r, k_, stride) = (rows as i32, k as i32, case.stride as i32);
    if unpacked {
        let to = device.memory::<u8>(2 * rows * case.stride);
        let arguments = arguments![&w, row_bytes, r, k_, &to, stride];
        let blocks = (rows * k.div_ceil(32)).div_ceil(256);
        device.launch(&format!("unpack_{}_bf16", dtype.name()), [blocks, 1, 1], 256, 0, arguments);
        (w, row_bytes) = (to, 2 * case.stride as u64);
    }
    let (on_device, x, bias) = (device.upload(&case.y), device.upload(&case.x), device.upload(&case.bias));
    let bias = if case.add { Argument::from(0u64) } else { Argument::from(&bias) };
    let add = i32::from(case.add);
    let maps = (device.tensor_map(&w, row_bytes as usize, ROWS), device.tensor_map(&x, 2 * case.stride, kernel.tokens));
    let arguments = arguments![&maps.0, &maps.1, 0, r, n as i32, k_, bias, &on_device, r, add];
    kernel.launch(device, (rows, n), arguments);
    let what = format!("{} of {rows} x {k} in {} by {n}", kernel.name, dtype.name());
    assert_sums(&on_device.download(), &case.expected, tolerance(dtype), &what);
}

#[test]
fn hopper_products_in_bfloat16_are_the_sums_of_the_rounded_operands() {
    let device = Device::new();
    if !device.has_hopper() {
        return;
    }
    for kernel in &BF16 {
        // as they lie in a file
        for shape in shapes(8) {
            compare_bf16(&device, kernel, GgmlType::BF16, false, shape);
        }
        // rows whose length is no multiple of anything
        for dtype in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            compare_bf16(&device, kernel, dtype, true, (5, 147, 3));
        }
    }
    for dtype in all_types() {
        compare_bf16(&device, &BF16[1], dtype, true, (37, 256 + dtype.block_len(), 19));
    }
}

#[test]
fn hopper_products_of_some_rows_are_those_of_the_whole_matrix() {
    let device = Device::new();
    if !device.has_hopper() {
        return;
    }
    let (rows, k, n, first) = (if races() { 60 } else { 300 }, 136, 19, 37);
    let mut rng = Random(5);
    let mut numbers = |len| to_bf16(&rng.floats(len));
    let (bytes, x) = (numbers(rows * k), device.upload(&numbers(n * k)));
    for kernel in &BF16 {
        let product = |w: &[u16], first: usize| {
            let (w, rows) = (device.upload(w), w.len() / k - first);
            let y = device.memory::<f32>(n * rows);
            let maps = (device.tensor_map(&w, 2 * k, ROWS), device.tensor_map(&x, 2 * k, kernel.tokens));
            let sizes = [first, rows, n, k].map(|size| Argument::from(size as i32));
            let [first_, r, n_, k_] = &sizes;
            kernel.launch(&device, (rows, n), arguments![&maps.0, &maps.1, first_, r, n_, k_, 0u64, &y, r, 0]);
            bits(&y.download())
        };
        assert_eq!(product(&bytes, first), product(&bytes[first * k..], 0), "{}", kernel.name);
    }
}
