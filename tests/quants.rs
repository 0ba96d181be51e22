//! Block types against gguf-py's numbers (`scripts/make-quant-vectors.py`), and the encoders against theory.

use mmada::tensor::{GgmlType, can_dequantize, can_quantize, dequantize, quantize, quantize_weighted};
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

fn encoded_weighted(t: GgmlType, x: &[f32], importance: &[f32]) -> Vec<u8> {
    let mut out = vec![0xAA; t.row_bytes(x.len()).unwrap()];
    for (x, out) in x.chunks(importance.len()).zip(out.chunks_mut(t.row_bytes(importance.len()).unwrap())) {
        quantize_weighted(t, x, Some(importance), out).unwrap();
    }
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

/// The error where each column counts with a weight.
fn weighted_rmse(a: &[f32], b: &[f32], weights: &[f32]) -> f64 {
    let weights: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let rows = a.len() / weights.len();
    let sum: f64 =
        a.iter().zip(b).zip(weights.iter().cycle()).map(|((a, b), w)| w * f64::from(a - b) * f64::from(a - b)).sum();
    (sum / (rows as f64 * weights.iter().sum::<f64>())).sqrt()
}

/// Columns of the rows that quantizers are compared on.
const COLUMNS: usize = 512;

/// Rows as weights of a model are (normal), with heavy tails (Student's t with 3 degrees of freedom), and with columns
/// of outliers. `scripts/compare-quantizers --constants` makes the same.
fn rows(kind: usize) -> Vec<f32> {
    let mut random = Random(100 + kind as u64);
    let mut x = random.normals(64 * COLUMNS, 0.02);
    match kind {
        0 => {}
        1 => {
            for x in &mut x {
                let squares: f64 = (0..3).map(|_| f64::from(random.normal()).powi(2)).sum();
                *x /= (squares / 3.0).sqrt() as f32;
            }
        }
        _ => x.iter_mut().enumerate().filter(|(i, _)| i % COLUMNS % 89 == 7).for_each(|(_, x)| *x *= 30.0),
    }
    x
}

/// Importances spread over orders of magnitude, as those of real activations do.
fn importances() -> Vec<f32> {
    let mut random = Random(103);
    (0..COLUMNS).map(|_| (1.5 * f64::from(random.normal())).exp() as f32).collect()
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
fn q8_0_is_encoded_to_the_bits_that_gguf_py_gives_and_the_other_simple_types_with_less_error() {
    let vectors = SafeTensors::deserialize(VECTORS).unwrap();
    for t in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q8_0] {
        let input = floats(vectors.tensor(&format!("{t}.input")).unwrap().data());
        let theirs = vectors.tensor(&format!("{t}.encoded")).unwrap();
        let ours = encoded(t, &input);
        let blocks = ours.chunks(t.block_bytes()).zip(theirs.data().chunks(t.block_bytes()));
        for (i, ((ours, theirs), x)) in blocks.zip(input.chunks(t.block_len())).enumerate() {
            if t == GgmlType::Q8_0 {
                assert_eq!(ours, theirs, "block {i}");
            }
            let [ours, theirs] = [ours, theirs].map(|b| rmse(x, &decoded(t, b, x.len())));
            assert!(ours <= theirs * 1.000001, "{t} block {i}: {ours} and {theirs}");
        }
    }
}

#[test]
fn what_cannot_be_coded_is_refused_by_name() {
    let mut out = [0.0; 256];
    let e = dequantize(GgmlType::Q8_K, &[0; 292], &mut out).unwrap_err();
    assert_eq!(e.to_string(), "tensor type Q8_K: this version cannot decode it");
    let e = quantize(GgmlType::IQ2_XXS, &out, &mut [0; 66]).unwrap_err();
    assert_eq!(e.to_string(), "tensor type IQ2_XXS: this version cannot encode it");
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
            GgmlType::Q2_K => (0, 3, 16),
            GgmlType::Q3_K => (-4, 3, 16),
            // Some of their levels, the ends among them.
            GgmlType::IQ4_NL | GgmlType::IQ4_XS => (-127, 113, 32),
            GgmlType::MXFP4 => (-12, 12, 32),
            _ => (-127, 127, 32),
        };
        let unit = match t {
            GgmlType::Q4_K | GgmlType::Q5_K => 63.0 / 1024.0,
            GgmlType::Q2_K => 15.0 / 1024.0,
            _ => 1.0 / 16.0,
        };
        let x: Vec<f32> = (0..1024)
            .map(|i| match i % sub {
                0 => low,
                1 => high,
                _ if matches!(t, GgmlType::IQ4_NL | GgmlType::IQ4_XS) => {
                    [-127, -49, 1, 25, 113][random.bits() as usize % 5]
                }
                _ if t == GgmlType::MXFP4 => [-12, -6, -1, 0, 2, 3, 8][random.bits() as usize % 7],
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
        (GgmlType::Q4_0, 32, 15.0, 1.05),
        (GgmlType::Q5_0, 32, 31.0, 1.08),
        (GgmlType::Q4_1, 32, 15.0, 0.90),
        (GgmlType::Q5_1, 32, 31.0, 0.91),
        (GgmlType::Q2_K, 16, 3.0, 0.82),
        (GgmlType::Q3_K, 16, 7.0, 1.04),
        (GgmlType::Q4_K, 32, 15.0, 0.90),
        (GgmlType::Q5_K, 32, 31.0, 0.92),
        (GgmlType::Q6_K, 16, 63.0, 1.05),
        (GgmlType::IQ4_NL, 32, 15.0, 0.96),
        (GgmlType::IQ4_XS, 32, 15.0, 0.97),
        (GgmlType::MXFP4, 32, 15.0, 1.45),
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
            // The most that an f16 scale and, for the mins of the K types, 6 bits of it can lose; between the values
            // of a 4-bit float lies more.
            let allowed = if t == GgmlType::MXFP4 { 0.05 } else { 0.004 };
            assert!(y.iter().all(|y| ((y - v) / v).abs() < allowed), "{t} {v}: {:?}", &y[..4]);
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

#[test]
fn importance_weights_lower_the_weighted_error() {
    let (x, importance) = (rows(1), importances());
    for t in encoders().filter(|t| !t.is_float() && *t != GgmlType::Q8_0) {
        let error = |bytes: &[u8]| weighted_rmse(&x, &decoded(t, bytes, x.len()), &importance);
        let (with, without) = (error(&encoded_weighted(t, &x, &importance)), error(&encoded(t, &x)));
        assert!(with < without * 0.99, "{t}: {with} and {without}");
    }
}

#[test]
fn equal_weights_on_any_scale_are_no_weights() {
    let x = rows(2);
    for t in encoders() {
        for weight in [0.0, 1e-30, 1.0, 4096.0] {
            assert!(encoded_weighted(t, &x, &[weight; COLUMNS]) == encoded(t, &x), "{t} {weight}");
        }
        let importance = importances();
        let scaled: Vec<f32> = importance.iter().map(|w| w * 1024.0).collect();
        assert!(encoded_weighted(t, &x, &importance) == encoded_weighted(t, &x, &scaled), "{t}");
    }
}

#[test]
fn elements_without_importance_still_come_near_their_value() {
    // All weight on one column in 32.
    let x = rows(0);
    let importance: Vec<f32> = (0..COLUMNS).map(|i| f32::from(u8::from(i % 32 == 5))).collect();
    for t in encoders().filter(|t| !t.is_float() && *t != GgmlType::Q8_0) {
        let y = decoded(t, &encoded_weighted(t, &x, &importance), x.len());
        assert!(weighted_rmse(&x, &y, &importance) <= rmse(&x, &decoded(t, &encoded(t, &x), x.len())) * 1.01, "{t}");
        assert!(rmse(&x, &y) < 0.02, "{t}: {}", rmse(&x, &y));
    }
}

#[test]
fn weights_that_mean_nothing_are_refused() {
    let x = Random(10).normals(256, 1.0);
    for t in encoders() {
        let mut out = vec![0; t.row_bytes(256).unwrap()];
        let e = quantize_weighted(t, &x, Some(&x[..255]), &mut out).unwrap_err();
        assert_eq!(e.to_string(), "255 importance weights were given for 256 elements");
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            let mut weights = vec![1.0; 256];
            weights[99] = bad;
            let e = quantize_weighted(t, &x, Some(&weights), &mut out).unwrap_err();
            assert_eq!(e.to_string(), format!("the importance weight of element 99 is {bad}"));
        }
    }
}

#[test]
fn errors_are_not_above_those_of_the_reference_quantizers() {
    let importance = importances();
    for (kind, name) in ["normal", "heavy tails", "outliers"].iter().enumerate() {
        let x = rows(kind);
        for (t, plain, weighted) in REFERENCE {
            let ours = rmse(&x, &decoded(t, &encoded(t, &x), x.len()));
            assert!(ours <= plain[kind] * 1.00001, "{t}, {name}: {ours:e} and {:e}", plain[kind]);
            let ours = weighted_rmse(&x, &decoded(t, &encoded_weighted(t, &x, &importance), x.len()), &importance);
            assert!(ours <= weighted[kind] * 1.00001, "{t}, {name}, weighted: {ours:e} and {:e}", weighted[kind]);
        }
    }
}

// What llama.cpp's own quantizers leave on `rows` (the source in llama-cpp-python 0.3.36), without importance weights
// and with `importances`; written by `scripts/compare-quantizers --constants`.
#[rustfmt::skip]
const REFERENCE: [(GgmlType, [f64; 3], [f64; 3]); 13] = [
    (GgmlType::Q4_0, [1.717503e-03, 4.660455e-03, 8.334074e-03], [1.435281e-03, 4.255390e-03, 7.510681e-03]),
    (GgmlType::Q4_1, [1.564412e-03, 3.734839e-03, 7.710482e-03], [1.122689e-03, 2.761771e-03, 4.780952e-03]),
    (GgmlType::Q5_0, [8.596112e-04, 2.467810e-03, 5.664621e-03], [7.188912e-04, 2.314958e-03, 5.239718e-03]),
    (GgmlType::Q5_1, [7.568484e-04, 1.780132e-03, 3.532358e-03], [5.477081e-04, 1.377531e-03, 2.555232e-03]),
    (GgmlType::Q8_0, [1.077588e-04, 3.285585e-04, 8.135948e-04], [1.080923e-04, 3.245787e-04, 7.470236e-04]),
    (GgmlType::Q2_K, [5.871558e-03, 1.237681e-02, 1.384392e-02], [4.041986e-03, 8.725259e-03, 1.435666e-02]),
    (GgmlType::Q3_K, [3.014460e-03, 6.673381e-03, 7.709967e-03], [2.426351e-03, 5.799754e-03, 7.108939e-03]),
    (GgmlType::Q4_K, [1.423895e-03, 3.374902e-03, 6.143081e-03], [1.147698e-03, 2.828342e-03, 5.108425e-03]),
    (GgmlType::Q5_K, [7.235712e-04, 1.739888e-03, 3.360325e-03], [5.985926e-04, 1.541999e-03, 2.957967e-03]),
    (GgmlType::Q6_K, [3.565729e-04, 9.799068e-04, 2.220693e-03], [2.955351e-04, 9.614591e-04, 2.076698e-03]),
    (GgmlType::IQ4_NL, [1.524109e-03, 3.723729e-03, 7.367676e-03], [1.278756e-03, 3.300625e-03, 6.187090e-03]),
    (GgmlType::IQ4_XS, [1.537023e-03, 3.765501e-03, 7.500928e-03], [1.296953e-03, 3.426634e-03, 6.454321e-03]),
    (GgmlType::MXFP4, [2.272598e-03, 5.196167e-03, 1.072825e-02], [2.283139e-03, 5.041091e-03, 1.515050e-02]),
];
