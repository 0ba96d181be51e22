//! Block types against gguf-py's numbers (`scripts/make-quant-vectors.py`), and the encoders against theory.

use mmada::tensor::{GgmlType, can_dequantize, can_quantize, dequantize, quantize};
use safetensors::SafeTensors;

const VECTORS: &[u8] = include_bytes!("golden/quants/vectors.safetensors");

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn decoded(t: GgmlType, bytes: &[u8], len: usize) -> Vec<f32> {
    // NaN, so that an element that is not written cannot pass.
    let mut out = vec![f32::NAN; len];
    dequantize(t, bytes, &mut out).unwrap();
    out
}

fn encoded(t: GgmlType, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0xAA; t.row_bytes(x.len()).unwrap()];
    quantize(t, x, &mut out).unwrap();
    out
}

fn encoders() -> impl Iterator<Item = GgmlType> {
    GgmlType::all().filter(|&t| can_quantize(t))
}

/// A small generator (SplitMix64), and normal numbers by Box and Muller.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f32 {
        ((-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
    fn normals(&mut self, n: usize, sigma: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * sigma).collect()
    }
}

fn rms(x: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = x.fold((0, 0.0), |(n, sum), v| (n + 1, sum + v * v));
    (sum / f64::from(n)).sqrt()
}

fn rmse(a: &[f32], b: &[f32]) -> f64 {
    rms(a.iter().zip(b).map(|(a, b)| f64::from(a - b)))
}

#[test]
fn every_decoder_gives_the_bits_that_gguf_py_gives() {
    let vectors = SafeTensors::deserialize(VECTORS).unwrap();
    let mut checked = Vec::new();
    for t in GgmlType::all().filter(|&t| can_dequantize(t) && t != GgmlType::F32) {
        let bytes = vectors.tensor(&format!("{t}.bytes")).unwrap();
        let values = floats(vectors.tensor(&format!("{t}.values")).unwrap().data());
        let got = decoded(t, bytes.data(), values.len());
        for (i, (got, want)) in bits(&got).into_iter().zip(bits(&values)).enumerate() {
            assert_eq!(got, want, "{t} element {i}: {} and {}", f32::from_bits(got), f32::from_bits(want));
        }
        checked.push(t.name());
    }
    assert_eq!(checked.len(), 25, "{checked:?}");
}

#[test]
fn every_type_that_holds_weights_can_be_decoded() {
    use GgmlType::*;
    // Q8_1 and Q8_K hold activations.
    for t in GgmlType::all() {
        assert_eq!(can_dequantize(t), !matches!(t, Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64), "{t}");
    }
}

#[test]
fn every_row_of_the_codebooks_is_that_of_gguf_py() {
    use GgmlType::*;
    let vectors = SafeTensors::deserialize(VECTORS).unwrap();
    for (t, rows) in [(IQ2_XXS, 256), (IQ2_XS, 512), (IQ2_S, 1024), (IQ3_XXS, 256), (IQ3_S, 512), (IQ1_S, 2048)] {
        let bytes = vectors.tensor(&format!("{t}.grid")).unwrap();
        let values = vectors.tensor(&format!("{t}.grid_values")).unwrap();
        let want: Vec<f32> = values.data().iter().map(|&v| f32::from(v as i8)).collect();
        assert_eq!(want.len(), rows * if matches!(t, IQ3_XXS | IQ3_S) { 4 } else { 8 });
        assert_eq!(decoded(t, bytes.data(), want.len()), want, "{t}");
    }
}

#[test]
fn blocks_are_decoded_from_any_address() {
    let vectors = SafeTensors::deserialize(VECTORS).unwrap();
    for t in GgmlType::all().filter(|&t| can_dequantize(t) && t != GgmlType::F32) {
        let bytes = vectors.tensor(&format!("{t}.bytes")).unwrap();
        let len = bytes.data().len() / t.block_bytes() * t.block_len();
        let mut moved = vec![0; bytes.data().len() + 1];
        moved[1..].copy_from_slice(bytes.data());
        assert_eq!(bits(&decoded(t, bytes.data(), len)), bits(&decoded(t, &moved[1..], len)), "{t}");
    }
}

#[test]
fn the_simple_encoders_give_the_bits_that_gguf_py_gives() {
    let vectors = SafeTensors::deserialize(VECTORS).unwrap();
    for t in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0] {
        let input = floats(vectors.tensor(&format!("{t}.input")).unwrap().data());
        let want = vectors.tensor(&format!("{t}.encoded")).unwrap();
        let got = encoded(t, &input);
        for (i, (got, want)) in got.chunks(t.block_bytes()).zip(want.data().chunks(t.block_bytes())).enumerate() {
            assert_eq!(got, want, "{t} block {i}");
        }
    }
}

#[test]
fn what_cannot_be_coded_is_refused_by_name() {
    let mut out = [0.0; 256];
    let e = dequantize(GgmlType::Q8_K, &[0; 292], &mut out).unwrap_err();
    assert_eq!(e.to_string(), "tensor type Q8_K: this version cannot decode it");
    let e = quantize(GgmlType::Q2_K, &out, &mut [0; 84]).unwrap_err();
    assert_eq!(e.to_string(), "tensor type Q2_K: this version cannot encode it");
    for (len, bytes) in [(32, 17), (32, 36), (31, 18), (0, 18)] {
        let e = dequantize(GgmlType::Q4_0, &vec![1; bytes], &mut out[..len]).unwrap_err();
        assert_eq!(e.to_string(), format!("{len} elements of type Q4_0 do not take {bytes} bytes"));
        let e = quantize(GgmlType::Q4_0, &out[..len], &mut vec![1; bytes]).unwrap_err();
        assert_eq!(e.to_string(), format!("{len} elements of type Q4_0 do not take {bytes} bytes"));
    }
}

#[test]
fn values_on_the_levels_of_a_type_come_back_unchanged() {
    let mut random = Random(5);
    for t in encoders() {
        // Levels of each type with a scale that is a power of two, both ends of the range in every sub-block.
        let (low, high, sub) = match t {
            GgmlType::Q4_0 => (-8, 7, 32),
            GgmlType::Q5_0 => (-16, 15, 32),
            GgmlType::Q4_1 => (-3, 12, 32),
            GgmlType::Q5_1 => (-20, 11, 32),
            // Scales 63/64 and up are what 6 bits hold exactly; here the mins are multiples of the same unit.
            GgmlType::Q4_K => (0, 15, 32),
            GgmlType::Q5_K => (0, 31, 32),
            GgmlType::Q6_K => (-32, 31, 16),
            _ => (-127, 127, 32),
        };
        let unit = match t {
            GgmlType::Q4_K | GgmlType::Q5_K => 63.0 / 1024.0,
            _ => 1.0 / 16.0,
        };
        let x: Vec<f32> = (0..1024)
            .map(|i| match i % sub {
                0 => low,
                1 => high,
                _ => low + (random.bits() % (high - low + 1) as u64) as i32,
            })
            .map(|q| q as f32 * unit)
            .collect();
        assert_eq!(decoded(t, &encoded(t, &x), x.len()), x, "{t}");
    }
}

#[test]
fn errors_of_normal_values_stay_below_what_plain_rounding_costs() {
    // Plain rounding to `levels` steps between the ends of each group, whose scale and offset are exact, has an error
    // of step / sqrt(12). The K types must do it better although their scales have 6 bits.
    let mut random = Random(6);
    for (t, group, levels, allowed) in [
        (GgmlType::Q8_0, 32, 254.0, 1.02),
        (GgmlType::Q4_0, 32, 15.0, 1.15),
        (GgmlType::Q5_0, 32, 31.0, 1.15),
        (GgmlType::Q4_1, 32, 15.0, 1.02),
        (GgmlType::Q5_1, 32, 31.0, 1.02),
        (GgmlType::Q4_K, 32, 15.0, 0.90),
        (GgmlType::Q5_K, 32, 31.0, 0.92),
        (GgmlType::Q6_K, 16, 63.0, 1.10),
    ] {
        for sigma in [0.02, 1.0, 300.0] {
            let x = random.normals(64 * 1024, sigma);
            let step = |x: &[f32]| {
                let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(a, b), &v| (a.min(v), b.max(v)));
                match t {
                    GgmlType::Q8_0 => f64::from(low.abs().max(high)) * 2.0 / levels,
                    _ => f64::from(high - low) / levels,
                }
            };
            let plain = rms(x.chunks(group).map(step)) / 12f64.sqrt();
            let got = rmse(&x, &decoded(t, &encoded(t, &x), x.len()));
            assert!(got < plain * allowed, "{t}: {got} and {plain}");
        }
    }
}

#[test]
fn zero_rows_stay_zero_in_every_type() {
    for t in encoders() {
        for zero in [0.0, -0.0] {
            let x = vec![zero; 512];
            assert!(decoded(t, &encoded(t, &x), 512).iter().all(|&v| v == 0.0), "{t}");
        }
    }
}

#[test]
fn blocks_of_one_value_keep_it() {
    for t in encoders() {
        for v in [1.0f32, -1.0, 0.37, -123.4] {
            let y = decoded(t, &encoded(t, &[v; 256]), 256);
            // The most that an f16 scale and, for the mins of the K types, 6 bits of it can lose.
            assert!(y.iter().all(|y| ((y - v) / v).abs() < 0.004), "{t} {v}: {:?}", &y[..4]);
        }
    }
}

#[test]
fn tiny_huge_and_mixed_values_never_become_nan_or_infinite() {
    let mut random = Random(7);
    for t in encoders() {
        for exponent in -149..128 {
            let mut x = random.normals(512, 2f32.powi(exponent).min(1e37));
            if exponent % 3 == 0 {
                // One value of another magnitude in a block.
                x[random.bits() as usize % 512] = 1.5 * 2f32.powi(-exponent.max(-100)).min(1e37);
            }
            let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let mut out = vec![0; t.row_bytes(512).unwrap()];
            match quantize(t, &x, &mut out) {
                Ok(()) => {
                    let y = decoded(t, &out, 512);
                    assert!(y.iter().all(|v| v.is_finite()), "{t} 2^{exponent}");
                    // The smallest f16 is 2^-24; what is smaller may become one or two of it.
                    assert!(rmse(&x, &y) <= f64::from(largest) + 2f64.powi(-23), "{t} 2^{exponent}");
                }
                Err(e) => {
                    assert!(largest > 60000.0 && t != GgmlType::F32, "{t} 2^{exponent}: {e}");
                    assert!(e.to_string().ends_with(&format!("do not fit {t}")), "{e}");
                }
            }
        }
    }
}

#[test]
fn values_near_the_smallest_f16_scale_are_rounded_with_the_scale_that_is_stored() {
    // d is a few steps of the smallest subnormal, 2^-24, so its rounding is coarse: every value must take the level
    // that is nearest under the stored scale.
    let mut random = Random(8);
    for (t, low, high) in [(GgmlType::Q8_0, -127, 127), (GgmlType::Q4_0, -8, 7), (GgmlType::Q5_0, -16, 15)] {
        for steps in [1.4f32, 2.5, 3.5, 10.5] {
            let d = steps * 2f32.powi(-24);
            let x: Vec<f32> = (0..32).map(|_| (random.uniform() as f32 - 0.5) * 2.0 * high as f32 * d).collect();
            let bytes = encoded(t, &x);
            let stored = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            for (x, y) in x.iter().zip(decoded(t, &bytes, 32)) {
                let nearest = (low..=high).map(|q| (x - stored * q as f32).abs()).fold(f32::INFINITY, f32::min);
                assert!((x - y).abs() <= nearest * 1.0001, "{t} {steps}: {x:e} became {y:e}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_are_refused_by_block_types_and_kept_by_floats() {
    for t in encoders() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = Random(9).normals(256, 1.0);
            x[77] = bad;
            let mut out = vec![0; t.row_bytes(256).unwrap()];
            match quantize(t, &x, &mut out) {
                Ok(()) => {
                    assert!(t.is_float());
                    let y = decoded(t, &out, 256)[77];
                    assert!(y == bad || (y.is_nan() && bad.is_nan()), "{t} {bad}: {y}");
                }
                Err(e) => assert_eq!(e.to_string(), format!("element 77 is {bad}, which {t} cannot hold")),
            }
        }
    }
}

#[test]
fn floats_too_large_for_the_type_are_an_error_instead_of_infinity() {
    assert_eq!(decoded(GgmlType::F16, &encoded(GgmlType::F16, &[65504.0, -65519.0]), 2), [65504.0, -65504.0]);
    let e = quantize(GgmlType::F16, &[1.0, -65520.0], &mut [0; 4]).unwrap_err();
    assert_eq!(e.to_string(), "values as large as 6.552e4 do not fit F16");
    assert!(quantize(GgmlType::BF16, &[f32::MAX], &mut [0; 2]).is_err());
}
