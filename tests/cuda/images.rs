//! Group normalization and softmax, against their definitions in f64.

use crate::arguments;
use crate::device::{Device, races};
use crate::support::Random;

/// That a number is `expected` to half a unit of bfloat16 (at most 2^-8 of it) in its first term and to 2^-16 of it in the
/// sum of both, give or take `slack`.
fn assert_terms([first, rest]: [u16; 2], expected: f64, slack: f64, what: &str) {
    let [first, rest] = [first, rest].map(|bits| f64::from(half::bf16::from_bits(bits).to_f32()));
    for (got, unit) in [(first, 1.0 / 256.0), (first + rest, 1.0 / 65536.0)] {
        assert!((got - expected).abs() <= unit * expected.abs() + slack, "{what} is {got}, not {expected}");
    }
}

#[test]
fn group_normalization_is_that_of_the_definition_with_and_without_swish() {
    let device = Device::new();
    for (positions, channels, groups, offset) in
        [(7, 12, 3, 0.0f32), (1, 64, 32, 1.0), (2100, 8, 2, 100.0), (50, 320, 32, -3.0)]
    {
        if races() && positions > 1000 {
            continue;
        }
        let mut rng = Random(channels as u64);
        // far from zero: the variance is a small difference of large sums
        let x: Vec<f32> = rng.floats(positions * channels).iter().map(|v| v + offset).collect();
        let (weight, bias) = (rng.floats(channels), rng.floats(channels));
        let (size, epsilon) = (channels / groups, 1e-6f32);

        let on_device = device.upload(&x);
        let (w, b) = (device.upload(&weight), device.upload(&bias));
        let blocks = positions.div_ceil(1024);
        let partial = device.memory::<f64>(blocks * 2 * channels);
        let (p, c) = (positions as i32, channels as i32);
        let grid = [blocks, channels.div_ceil(256), 1];
        device.launch("group_norm_sums", grid, 256, 0, arguments![&on_device, p, c, &partial]);
        let (scale, shift) = (device.memory::<f32>(channels), device.memory::<f32>(channels));
        let arguments = arguments![&partial, blocks as i32, p, c, groups as i32, &w, &b, epsilon, &scale, &shift];
        device.launch("group_norm_scales", [groups, 1, 1], 32, 0, arguments);

        let member = |group: usize| (0..x.len()).filter(move |i| i % channels / size == group);
        let statistics: Vec<(f64, f64)> = (0..groups)
            .map(|group| {
                let count = (size * positions) as f64;
                let mean = member(group).map(|i| f64::from(x[i])).sum::<f64>() / count;
                let variance = member(group).map(|i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
                (mean, 1.0 / (variance + f64::from(epsilon)).sqrt())
            })
            .collect();
        for swish in [false, true] {
            let (out, rest) = (device.memory::<u16>(x.len()), device.memory::<u16>(x.len()));
            for rest in [None, Some(&rest)] {
                let (count, swish) = (x.len() as u64, i32::from(swish));
                let arguments = arguments![&on_device, &scale, &shift, c, count, swish, &out, rest];
                device.launch("group_norm_apply", [x.len().div_ceil(1024), 1, 1], 256, 0, arguments);
            }
            let rest = rest.download();
            for (i, got) in out.download().iter().enumerate() {
                let channel = i % channels;
                let (mean, inverse) = statistics[channel / size];
                let v = (f64::from(x[i]) - mean) * inverse * f64::from(weight[channel]) + f64::from(bias[channel]);
                let expected = if swish { v / (1.0 + (-v).exp()) } else { v };
                // x * scale + shift in f32: a small difference of large terms
                let terms = (f64::from(x[i]).abs() + mean.abs()) * inverse * f64::from(weight[channel]).abs();
                let slack = 3e-7 * (terms + f64::from(bias[channel]).abs());
                let what = format!("{positions} x {channels}, {i}");
                assert_terms([*got, rest[i]], expected, slack, &what);
            }
        }
    }
}

#[test]
fn softmax_is_that_of_the_definition_in_one_term_and_in_two() {
    let device = Device::new();
    for (rows, width, padded, scale) in
        [(3usize, 1, 8, 1.0f32), (4, 37, 40, 0.5), (2, 1024, 1024, 0.04), (3, 1500, 1504, 3.0)]
    {
        let mut x = Random(width as u64).floats(rows * width);
        x[..width].iter_mut().for_each(|v| *v *= 1e4); // one of them takes all
        let on_device = device.upload(&x);
        let (out, rest) = (device.memory::<u16>(rows * padded), device.memory::<u16>(rows * padded));
        let mut alone = Vec::new();
        for rest in [None, Some(&rest)] {
            let arguments = arguments![&on_device, width as i32, scale, padded as i32, &out, rest];
            device.launch("softmax_rows", [rows, 1, 1], 256, 0, arguments);
            alone.push(out.download());
        }
        assert_eq!(alone[0], alone[1]);
        let (out, rest) = (out.download(), rest.download());
        for (r, row) in x.chunks(width).enumerate() {
            let scaled: Vec<f64> = row.iter().map(|v| f64::from(*v) * f64::from(scale)).collect();
            let top = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scaled.iter().map(|v| (v - top).exp()).sum();
            for at in 0..padded {
                let terms = [out[r * padded + at], rest[r * padded + at]];
                let Some(v) = scaled.get(at) else {
                    assert_eq!(terms, [0, 0], "behind row {r} of {width}");
                    continue;
                };
                let expected = (v - top).exp() / sum;
                // the exponent's rounding in f32
                let slack = expected * (top - v + top.abs() + 4.0) * 2.5e-7 + 1e-37;
                assert_terms(terms, expected, slack, &format!("row {r} of {width}, {at}"));
            }
        }
    }
}

#[test]
fn a_row_with_nan_is_nan_after_softmax_and_leaves_others_alone() {
    let device = Device::new();
    let mut x = Random(2).floats(3 * 300);
    x[300 + 299] = f32::NAN;
    let (on_device, out) = (device.upload(&x), device.memory::<u16>(3 * 304));
    let arguments = arguments![&on_device, 300, 1.0f32, 304, &out, None::<&crate::device::Memory<u16>>];
    device.launch("softmax_rows", [3, 1, 1], 256, 0, arguments);
    for (at, bits) in out.download().iter().enumerate() {
        let nan = half::bf16::from_bits(*bits).is_nan();
        assert_eq!(nan, at / 304 == 1 && at % 304 < 300, "{at}");
    }
}
