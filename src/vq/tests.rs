//! The layers against plain references on random odd sizes.

use super::conv::{Convolution, Sampling};
use super::features::{Features, Scratch};
use super::norm::{Norm, exp, group_norm};
use super::weights::ConvWeights;
use crate::gguf::{GgmlType, Header, MetaValue, TensorSpec, Writer};
use crate::kernels::Kernels;
use crate::parallel::{Exec, Threads};

/// Random numbers in about [-1, 1]; the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / 8_388_608.0 - 1.0
    }
    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
    fn features(&mut self, height: usize, width: usize, channels: usize) -> Features {
        Features { height, width, channels, data: self.floats(height * width * channels) }
    }
}

/// A file that holds one convolution, F32 weights as in `weights` [outputs, kernel, kernel, inputs].
fn file(weights: &[f32], bias: &[f32], window: usize) -> (Header, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("conv.gguf");
    let spec = |name: &str, dims: &[usize]| TensorSpec { name: name.into(), dtype: GgmlType::F32, dims: dims.into() };
    let tensors = [spec("vq.c.weight", &[window, bias.len()]), spec("vq.c.bias", &[bias.len()])];
    let metadata = [("general.architecture".to_owned(), MetaValue::String("mmada".into()))];
    let mut writer = Writer::create(&path, &metadata, &tensors).unwrap();
    writer.write(bytemuck::cast_slice(weights)).unwrap();
    writer.write(bytemuck::cast_slice(bias)).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (Header::parse(&bytes, "conv.gguf").unwrap(), bytes)
}

fn swish(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Seven loops. `at` is the input with zeros around it, upsampled where asked for.
fn naive(x: &Features, norm: Option<&Norm>, w: &[f32], bias: &[f32], kernel: usize, sampling: Sampling) -> Vec<f64> {
    let (h, wd, c) = (x.height as isize, x.width as isize, x.channels);
    let value = |row: isize, column: isize, ch: usize| {
        if row < 0 || column < 0 || row >= h || column >= wd {
            return 0.0;
        }
        let v = f64::from(x.data[(row * wd + column) as usize * c + ch]);
        norm.map_or(v, |n| swish(v * f64::from(n.scale[ch]) + f64::from(n.shift[ch])))
    };
    let (out_h, out_w, stride, pad) = match sampling {
        Sampling::Same => (h, wd, 1, (kernel / 2) as isize),
        Sampling::Down => (h / 2, wd / 2, 2, 0),
        Sampling::Up => (2 * h, 2 * wd, 1, 1),
    };
    let mut out = Vec::new();
    for oy in 0..out_h {
        for ox in 0..out_w {
            for (o, b) in bias.iter().enumerate() {
                let mut sum = f64::from(*b);
                for ky in 0..kernel {
                    for kx in 0..kernel {
                        let (iy, ix) = (oy * stride + ky as isize - pad, ox * stride + kx as isize - pad);
                        let (iy, ix) =
                            if sampling == Sampling::Up { (iy.div_euclid(2), ix.div_euclid(2)) } else { (iy, ix) };
                        for ch in 0..c {
                            let weight = w[((o * kernel + ky) * kernel + kx) * c + ch];
                            sum += f64::from(weight) * value(iy, ix, ch);
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

fn assert_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let max = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*g) - w).abs();
        assert!(error <= tolerance * max, "element {i}: {g} is not {w}, off by {error:e} of {max}");
    }
}

/// Computes a convolution of random input both ways, stored and added.
fn check_conv(sides: (usize, usize), channels: (usize, usize), kernel: usize, sampling: Sampling, normed: bool) {
    let threads = Threads::new(3).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let mut random = Random(0x9e37_79b9 + (sides.0 * 31 + sides.1) as u64);
    let x = random.features(sides.0, sides.1, channels.0);
    let window = kernel * kernel * channels.0;
    let (w, bias) = (random.floats(window * channels.1), random.floats(channels.1));
    let norm = Norm { scale: random.floats(channels.0), shift: random.floats(channels.0), swish: true };
    let norm = normed.then_some(&norm);
    let (header, bytes) = file(&w, &bias, window);
    let weights = ConvWeights::find(&header, "c", kernel, channels.0, channels.1).unwrap();
    let convolution = Convolution { exec: &exec, weights: &weights, x: &x, norm, sampling };
    let mut want = naive(&x, norm, &w, &bias, kernel, sampling);
    let mut scratch = Scratch::default();
    let got = convolution.store(&bytes, &mut scratch).unwrap();
    assert_close(&got.data, &want, 3e-6);

    let mut sum = random.features(got.height, got.width, got.channels);
    want.iter_mut().zip(&sum.data).for_each(|(w, s)| *w += f64::from(*s));
    convolution.add_to(&mut sum, &bytes, &mut scratch).unwrap();
    assert_close(&sum.data, &want, 3e-6);
}

#[test]
fn convolutions_agree_with_seven_loops_on_odd_sizes() {
    for sides in [(1, 1), (1, 7), (5, 1), (3, 4), (7, 11), (9, 6)] {
        for normed in [false, true] {
            check_conv(sides, (5, 3), 3, Sampling::Same, normed);
            check_conv(sides, (3, 7), 1, Sampling::Same, normed);
            check_conv(sides, (2, 5), 3, Sampling::Up, normed);
            if sides.0 > 1 && sides.1 > 1 {
                check_conv(sides, (5, 2), 3, Sampling::Down, normed);
            }
        }
    }
}

#[test]
fn convolutions_agree_with_seven_loops_when_they_take_several_chunks() {
    // Rows of a chunk overlap with the next one's: 9 * 160 * 2000 windows are more than the patches of a chunk.
    for sampling in [Sampling::Same, Sampling::Down, Sampling::Up] {
        check_conv((60, 71), (160, 2), 3, sampling, true);
    }
    // A row that does not fit a chunk.
    check_conv((3, 2411), (128, 2), 3, Sampling::Same, true);
}

#[test]
fn group_norm_agrees_with_its_definition() {
    let threads = Threads::new(2).unwrap();
    let exec = Exec::new(&threads, Kernels::best(), None);
    let mut random = Random(77);
    for (height, width, channels, groups) in [(1, 1, 6, 3), (37, 61, 12, 4), (3, 5, 7, 7), (45, 47, 8, 1)] {
        let mut x = random.features(height, width, channels);
        x.data.iter_mut().enumerate().for_each(|(i, v)| *v = *v * 0.1 + (i % channels) as f32 * 3.0);
        let (weight, bias) = (random.floats(channels), random.floats(channels));
        let norm = group_norm(&exec, &x, (&weight, &bias), groups, 1e-6, true).unwrap();
        let mut got = vec![0.0; x.data.len()];
        norm.apply(&exec, &x.data, &mut got);

        let size = channels / groups;
        let moments: Vec<(f64, f64)> = (0..groups)
            .map(|g| {
                let member = |i: &usize| (i % channels) / size == g;
                let values: Vec<f64> = (0..x.data.len()).filter(member).map(|i| f64::from(x.data[i])).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64)
            })
            .collect();
        let want: Vec<f64> = (0..x.data.len())
            .map(|i| {
                let c = i % channels;
                let (mean, variance) = moments[c / size];
                let v = (f64::from(x.data[i]) - mean) / (variance + 1e-6).sqrt();
                swish(v * f64::from(weight[c]) + f64::from(bias[c]))
            })
            .collect();
        assert_close(&got, &want, 2e-5);
    }
}

#[test]
fn the_exponential_is_good_to_two_units_in_the_last_place() {
    let mut random = Random(5);
    for _ in 0..200_000 {
        let x = random.next() * 86.0;
        let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
        assert!((got - want).abs() <= 2.4e-7 * want, "exp({x}) = {got}, not {want}");
    }
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(f32::NAN).is_nan());
    assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) < 1e-37);
}

#[test]
fn scratch_reuses_the_smallest_buffer_that_fits() {
    let mut scratch = Scratch::default();
    let (small, large) = (scratch.features(4, 4, 4).unwrap(), scratch.features(40, 40, 4).unwrap());
    let addresses = (small.data.as_ptr(), large.data.as_ptr());
    scratch.recycle(large);
    scratch.recycle(small);
    let again = scratch.features(8, 2, 4).unwrap();
    assert_eq!((again.data.as_ptr(), again.data.len()), (addresses.0, 64));
    assert_eq!(scratch.features(20, 20, 4).unwrap().data.as_ptr(), addresses.1);
    let error = scratch.features(usize::MAX / 2, 3, 1).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
}
