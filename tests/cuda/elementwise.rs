//! What lies between the products.

use mmada::kernels::elementwise::{Pairs, Rope, rms_norm, silu_mul};
use mmada::tensor::{GgmlType, dequantize};

use crate::arguments;
use crate::device::{Device, Memory};
use crate::support::{Random, assert_close, bf16_rest, bits, portable, to_bf16, types};

/// Rows of several lengths: parts of a warp's 256 elements, some more than a block of threads takes at once.
const LENGTHS: [usize; 4] = [32, 288, 1024, 2336];
const ROWS: usize = 3;

/// The scale of a group and its quants, from their definition.
fn quantized(x: &[f32]) -> (f32, Vec<i8>) {
    let d = x.iter().fold(0.0f32, |peak, v| peak.max(v.abs())) / 127.0;
    let inverse = if d.is_normal() { 1.0 / d } else { 0.0 };
    (if d.is_normal() { d } else { 0.0 }, x.iter().map(|v| (v * inverse).round_ties_even() as i8).collect())
}

/// Int8 rows on the device, for a kernel to fill.
struct Int8<'a> {
    q: Memory<'a, i8>,
    scale: Memory<'a, f32>,
    sums: Memory<'a, i16>,
    d: usize,
    group: usize,
}

impl<'a> Int8<'a> {
    fn new(device: &'a Device, d: usize, group: usize) -> Self {
        let scale = device.memory(ROWS * d.div_ceil(group));
        Int8 { q: device.memory(ROWS * d), scale, sums: device.memory(ROWS * d / 16), d, group }
    }

    /// That this is what `x` comes to; `slack` is how far quants may lie from its own, where it is known up to rounding.
    fn check(&self, x: &[f32], slack: i32, what: &str) {
        let (q, scale, sums) = (self.q.download(), self.scale.download(), self.sums.download());
        let mut scales = scale.iter();
        for (r, row) in x.chunks(self.d).enumerate() {
            for (g, group) in row.chunks(self.group).enumerate() {
                let (d, expected) = quantized(group);
                let got = &q[r * self.d + g * self.group..][..group.len()];
                let near = got.iter().zip(&expected).all(|(g, e)| (i32::from(*g) - i32::from(*e)).abs() <= slack);
                assert!(near, "{what}, row {r}, group {g}: {got:?}, not {expected:?}");
                let got = *scales.next().unwrap();
                assert!((got - d).abs() <= slack as f32 * 1e-5 * d, "{what}, row {r}, group {g}: {got}, not {d}");
            }
        }
        if self.group == 32 {
            for (i, (sum, q)) in sums.iter().zip(q.chunks(16)).enumerate() {
                assert_eq!(i32::from(*sum), q.iter().map(|q| i32::from(*q)).sum::<i32>(), "{what}, sum {i}");
            }
        }
    }
}

#[test]
fn activations_become_the_int8_that_the_definition_says() {
    let device = Device::new();
    for d in LENGTHS {
        for group in [32, 256] {
            let mut x = Random(d as u64).floats(ROWS * d);
            x[..32].fill(0.0);
            x[d..d + 32].fill(1e-41); // a scale that would be subnormal
            let (from, to) = (device.upload(&x), Int8::new(&device, d, group));
            let arguments = arguments![&from, d as i32, group as i32, &to.q, &to.scale, &to.sums];
            device.launch("quantize", [ROWS, 1, 1], 256, 0, arguments);
            to.check(&x, 0, "quantize");
        }
    }
}

#[test]
fn the_scale_of_a_group_with_nan_is_nan() {
    let device = Device::new();
    let mut x = Random(1).floats(64);
    x[40] = f32::NAN;
    let (from, q, scale, sums) =
        (device.upload(&x), device.memory::<i8>(64), device.memory::<f32>(2), device.memory::<i16>(4));
    device.launch("quantize", [1, 1, 1], 256, 0, arguments![&from, 64, 32, &q, &scale, &sums]);
    let scale = scale.download();
    assert!(scale[0].is_finite() && scale[1].is_nan());
}

#[test]
fn norms_are_those_of_the_processor_as_floats_bfloat16_and_int8() {
    let device = Device::new();
    for d in LENGTHS {
        let mut rng = Random(3 + d as u64);
        let (x, weight) = (rng.floats(ROWS * d), rng.floats(d));
        let mut expected = vec![0.0; x.len()];
        portable(|exec| rms_norm(exec, &x, &weight, 1e-5, &mut expected));
        let (x, weight, d_) = (device.upload(&x), device.upload(&weight), d as i32);
        let out = device.memory::<f32>(ROWS * d);
        device.launch("rms_norm", [ROWS, 1, 1], 256, 0, arguments![&x, &weight, 1e-5f32, d_, &out]);
        assert_close(&out.download(), &expected, 1e-6, "rms_norm");
        let rounded = device.memory::<u16>(ROWS * d);
        device.launch("rms_norm_bf16", [ROWS, 1, 1], 256, 0, arguments![&x, &weight, 1e-5f32, d_, &rounded]);
        assert_eq!(rounded.download(), to_bf16(&out.download()), "rms_norm_bf16");
        for group in [32, 256] {
            let to = Int8::new(&device, d, group);
            let arguments = arguments![&x, &weight, 1e-5f32, d_, group as i32, &to.q, &to.scale, &to.sums];
            device.launch("rms_norm_quantize", [ROWS, 1, 1], 256, 0, arguments);
            to.check(&out.download(), 0, "rms_norm_quantize");
        }
    }
}

#[test]
fn gates_are_those_of_the_processor_as_floats_bfloat16_and_int8() {
    let device = Device::new();
    for d in LENGTHS {
        let mut rng = Random(4 + d as u64);
        let (mut gate, up) = (rng.floats(ROWS * d), rng.floats(ROWS * d));
        gate[..8].copy_from_slice(&[100.0, -100.0, 88.5, -88.5, 0.0, -0.0, 1e30, -1e30]);
        let mut expected = gate.clone();
        portable(|exec| silu_mul(exec, &mut expected, &up));
        // the processor's exponential ends at 88
        let [_, low, ..] = expected[..] else { unreachable!() };
        assert!(low.abs() < 1e-30);
        let (gate, up, d_) = (device.upload(&gate), device.upload(&up), d as i32);
        let out = device.memory::<f32>(ROWS * d);
        device.launch("silu_mul", [ROWS, 1, 1], 256, 0, arguments![&gate, &up, d_, &out]);
        let got = out.download();
        for (i, (g, e)) in got.iter().zip(&expected).enumerate().filter(|(i, _)| !matches!(i, 6 | 7)) {
            assert!((g - e).abs() <= 2e-6 * e.abs() + 1e-30, "silu_mul of {d}: element {i} is {g}, not {e}");
        }
        let rounded = device.memory::<u16>(ROWS * d);
        device.launch("silu_mul_bf16", [ROWS, 1, 1], 256, 0, arguments![&gate, &up, d_, &rounded]);
        assert_eq!(rounded.download(), to_bf16(&got), "silu_mul_bf16");
        for group in [32, 256] {
            let to = Int8::new(&device, d, group);
            let arguments = arguments![&gate, &up, d_, group as i32, &to.q, &to.scale, &to.sums];
            device.launch("silu_mul_quantize", [ROWS, 1, 1], 256, 0, arguments);
            to.check(&got, 0, "silu_mul_quantize");
        }
    }
}

#[test]
fn floats_are_rounded_to_the_nearest_bfloat16() {
    let device = Device::new();
    let mut x = Random(9).floats(288);
    // ties, and the largest
    x[..4].copy_from_slice(&[f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000), f32::MAX, -0.0]);
    let (from, out) = (device.upload(&x), device.memory::<u16>(288));
    device.launch("round_to_bf16", [1, 1, 1], 256, 0, arguments![&from, 288, &out]);
    assert_eq!(out.download(), to_bf16(&x));
}

#[test]
fn rows_are_gathered_in_the_order_asked_for() {
    let device = Device::new();
    let rows = [3i32, 0, 3, 5];
    for d in [4, 36, 1100] {
        let x = Random(6).floats(6 * d);
        let (on_device, wanted, out) = (device.upload(&x), device.upload(&rows), device.memory::<f32>(rows.len() * d));
        device.launch("gather_rows", [rows.len(), 1, 1], 256, 0, arguments![&on_device, &wanted, d as i32, &out]);
        let expected: Vec<f32> = rows.iter().flat_map(|row| &x[*row as usize * d..][..d]).copied().collect();
        assert_eq!(bits(&out.download()), bits(&expected));
    }
}

#[test]
fn channels_are_rounded_to_one_or_two_terms_with_zeros_behind_them() {
    let device = Device::new();
    for (positions, channels, padded) in [(1000usize, 3, 8), (5, 256, 256), (7, 13, 24), (1, 1, 16)] {
        let mut x = Random(7).floats(positions * channels);
        x[0] = f32::from_bits(0x3f80_8000); // half way: to even, and the rest is half a unit
        let mut filled = vec![0.0; positions * padded];
        for (to, from) in filled.chunks_mut(padded).zip(x.chunks(channels)) {
            to[..channels].copy_from_slice(from);
        }
        let on_device = device.upload(&x);
        let grid = [(positions * padded).div_ceil(2048), 1, 1];
        for two in [false, true] {
            let (out, rest) = (device.memory::<u16>(filled.len()), device.memory::<u16>(filled.len()));
            let (c, p) = (channels as i32, padded as i32);
            let arguments = arguments![&on_device, c, p, positions as u64, &out, two.then_some(&rest)];
            device.launch("pad_to_bf16", grid, 256, 0, arguments);
            assert_eq!(out.download(), to_bf16(&filled));
            let expected = if two { bf16_rest(&filled) } else { vec![u16::MAX; filled.len()] };
            assert_eq!(rest.download(), expected);
        }
    }
}

#[test]
fn rotary_positions_are_those_of_the_processor_whatever_the_order_of_pairs() {
    let device = Device::new();
    for (heads, half, pairs) in [(3, 32, Pairs::Halves), (5, 64, Pairs::Neighbours), (2, 4, Pairs::Halves)] {
        let d = heads * 2 * half;
        let positions = [0u32, 37, 99];
        let theta = 500_000.0f32;
        let mut x = Random(half as u64).floats(positions.len() * d);
        let (on_device, out) = (device.upload(&x), device.memory::<u16>(x.len()));
        // the angles as `Rope` has them
        let angle = |p: usize, i: usize| p as f32 * (1.0 / theta.powf((2 * i) as f32 / (2 * half) as f32));
        let table =
            |f: fn(f32) -> f32| -> Vec<f32> { (0..100 * half).map(|at| f(angle(at / half, at % half))).collect() };
        let (cos, sin) = (device.upload(&table(f32::cos)), device.upload(&table(f32::sin)));
        let where_ = device.upload(&positions.map(|p| p as i32));
        let neighbours = i32::from(pairs == Pairs::Neighbours);
        let arguments = arguments![&on_device, &where_, &cos, &sin, heads as i32, half as i32, neighbours, &out];
        device.launch("rope", [positions.len(), 1, 1], 256, 0, arguments);
        let rope = Rope::new(100, 2 * half, theta, pairs).unwrap();
        portable(|exec| rope.apply(exec, &mut x, &positions));
        assert_eq!(out.download(), to_bf16(&x), "{pairs:?}");
    }
}

#[test]
fn embeddings_of_every_type_are_what_the_table_decodes_to() {
    let device = Device::new();
    let ids = [4i32, 0, 2, 4];
    assert_eq!(types().len(), 26);
    for dtype in types() {
        let kernel = format!("embed_{}", dtype.name());
        let (d, rows) = (dtype.block_len().max(32) * 9, 5);
        let mut rng = Random(11);
        let table = match dtype {
            GgmlType::F32 => rng.floats(rows * d).iter().flat_map(|v| v.to_le_bytes()).collect(),
            GgmlType::BF16 => to_bf16(&rng.floats(rows * d)).iter().flat_map(|v| v.to_le_bytes()).collect(),
            GgmlType::F16 => {
                rng.floats(rows * d).iter().flat_map(|v| half::f16::from_f32(*v * 1e-3).to_le_bytes()).collect()
            }
            _ => rng.weights(dtype, rows, d),
        };
        let row_bytes = dtype.row_bytes(d).unwrap();
        let mut expected = vec![0.0; ids.len() * d];
        for (out, id) in expected.chunks_mut(d).zip(ids) {
            dequantize(dtype, &table[id as usize * row_bytes..][..row_bytes], out).unwrap();
        }
        let (table, on_device) = (device.upload(&table), device.upload(&ids));
        let out = device.memory::<f32>(expected.len());
        let arguments = arguments![&table, row_bytes as u64, &on_device, d as i32, &out];
        device.launch(&kernel, [ids.len(), 1, 1], 256, 0, arguments);
        if dtype.is_float() {
            assert_eq!(bits(&out.download()), bits(&expected), "{kernel}");
        } else {
            assert_close(&out.download(), &expected, 1e-6, &kernel);
        }
    }
}
