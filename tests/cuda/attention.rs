//! Attention in bfloat16 beside the definition in f32, on the same rounded inputs.

use std::ops::Range;

use mmada::kernels::attention::{Attention, Precision, Scratch};

use crate::device::{Argument, Device, races};
use crate::support::{Random, assert_close, portable};

struct Case<'a> {
    dim: usize,
    heads: usize,
    kv_heads: usize,
    lengths: &'a [usize],
    /// every which row is no key
    masked: Option<fn(usize) -> bool>,
    /// of queries, so that scores are as large
    scale: f32,
}

fn rounded(rng: &mut Random, n: usize, scale: f32) -> (Vec<u16>, Vec<f32>) {
    let bits: Vec<u16> = (0..n).map(|_| half::bf16::from_f32(rng.float() * scale).to_bits()).collect();
    let floats = bits.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect();
    (bits, floats)
}

fn compare(device: &Device, case: &Case) {
    let Case { dim, heads, kv_heads, lengths, .. } = *case;
    let mut starts = vec![0usize];
    starts.extend(lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    }));
    let sequences: Vec<Range<usize>> = starts.windows(2).map(|w| w[0]..w[1]).collect();
    let rows = starts[lengths.len()];
    let mut rng = Random(dim as u64 + rows as u64);
    let (q_bits, q) = rounded(&mut rng, rows * heads * dim, case.scale);
    let (k_bits, k) = rounded(&mut rng, rows * kv_heads * dim, 1.0);
    let (v_bits, v) = rounded(&mut rng, rows * kv_heads * dim, 1.0);
    let mask: Option<Vec<bool>> = case.masked.map(|masked| (0..rows).map(|row| !masked(row)).collect());

    let (q_bits, k_bits, v_bits) = (device.upload(&q_bits), device.upload(&k_bits), device.upload(&v_bits));
    let on_device = mask.as_ref().map(|mask| device.upload(&mask.iter().map(|m| u8::from(*m)).collect::<Vec<u8>>()));
    let mask_argument = on_device.as_ref().map_or(Argument::from(0u64), Argument::from);
    let starts = device.upload(&starts.iter().map(|s| *s as i32).collect::<Vec<i32>>());
    let out = device.memory::<f32>(rows * heads * dim);
    let longest = lengths.iter().max().unwrap();
    device.launch(
        &format!("attention_{dim}"),
        [longest.div_ceil(64), heads, lengths.len()],
        128,
        4 * 64 * dim * 2,
        &[
            (&q_bits).into(),
            (&k_bits).into(),
            (&v_bits).into(),
            (&starts).into(),
            (&starts).into(),
            mask_argument,
            (heads as i32).into(),
            (kv_heads as i32).into(),
            (&out).into(),
        ],
    );

    let mut expected = vec![f32::NAN; rows * heads * dim];
    let shape = Attention { heads, kv_heads, head_dim: dim, sequences: &sequences, mask: mask.as_deref() };
    portable(|exec| {
        shape.run(exec, Precision::F32, &mut Scratch::default(), &q, &k, &v, &mut expected).unwrap();
    });
    // probabilities are rounded to 8 bits
    assert_close(&out.download(), &expected, 4e-3, &format!("attention of {lengths:?}, heads of {dim}"));
}

#[test]
fn sequences_of_different_lengths_attend_to_themselves() {
    let device = Device::new();
    // three tiles of keys: the third goes where the first was
    let lengths: &[usize] = if races() { &[135, 3] } else { &[1, 63, 64, 65, 130] };
    for dim in [64, 128] {
        compare(&device, &Case { dim, heads: 2, kv_heads: 2, lengths, masked: None, scale: 1.0 });
    }
}

#[test]
fn several_heads_share_keys_and_values() {
    let device = Device::new();
    compare(&device, &Case { dim: 64, heads: 6, kv_heads: 2, lengths: &[37, 20], masked: None, scale: 1.0 });
}

#[test]
fn keys_that_a_mask_leaves_out_do_not_count_and_a_sequence_without_keys_gets_zeros() {
    let device = Device::new();
    // of the first sequence a whole tile and some more, of the last all
    let masked: fn(usize) -> bool = |row| row < 66 || row % 7 == 3 || row >= 80;
    compare(
        &device,
        &Case { dim: 128, heads: 1, kv_heads: 1, lengths: &[70, 10, 9], masked: Some(masked), scale: 1.0 },
    );
}

#[test]
fn scores_far_apart_do_not_overflow() {
    let device = Device::new();
    compare(&device, &Case { dim: 64, heads: 1, kv_heads: 1, lengths: &[100], masked: None, scale: 300.0 });
}
