//! Group normalization, against its definition in f64.

use crate::arguments;
use crate::device::{Device, races};
use crate::support::Random;

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
            let out = device.memory::<u16>(x.len());
            let arguments = arguments![&on_device, &scale, &shift, c, x.len() as u64, i32::from(swish), &out];
            device.launch("group_norm_apply", [x.len().div_ceil(1024), 1, 1], 256, 0, arguments);
            for (i, got) in out.download().iter().enumerate() {
                let channel = i % channels;
                let (mean, inverse) = statistics[channel / size];
                let v = (f64::from(x[i]) - mean) * inverse * f64::from(weight[channel]) + f64::from(bias[channel]);
                let expected = if swish { v / (1.0 + (-v).exp()) } else { v };
                let got = f64::from(half::bf16::from_bits(*got).to_f32());
                // half a unit of bfloat16, and what f32 loses where the offset is large
                let slack = expected.abs() / 256.0 + 1e-6 * (1.0 + f64::from(offset.abs())) * inverse;
                assert!((got - expected).abs() <= slack, "{positions} x {channels}: {i} is {got}, not {expected}");
            }
        }
    }
}
