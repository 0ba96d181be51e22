//! Distances.

/// Panics where `got` is farther from `expected` than `tolerance` times the largest of `expected`.
pub fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(scale.is_finite() && scale > 0.0, "{what}: the expected values are empty");
    let distances = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is farther than everything.
    let (at, worst) = distances.enumerate().fold((0, 0f32), |m, d| if d.1 <= m.1 { m } else { d });
    let relative = worst / scale;
    assert!(
        relative <= tolerance,
        "{what}: {} at {at} instead of {}: {relative:e} of the maximum, {tolerance:e} is allowed",
        got[at],
        expected[at]
    );
}

/// Whether two runs gave the same bits.
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: number of values");
    let differs = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = differs {
        panic!("{what}: {} and {} at {at}", a[at], b[at]);
    }
}

/// [channels, height, width] to [height, width, channels].
pub fn channels_last(planes: &[f32], channels: usize) -> Vec<f32> {
    let positions = planes.len() / channels;
    (0..planes.len()).map(|i| planes[i % channels * positions + i / channels]).collect()
}
