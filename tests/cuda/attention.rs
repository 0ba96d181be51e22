//! Attention in bfloat16 beside the definition in f32, on the same rounded inputs: by the kernels for every card, and by those
//! for Hopper.

use std::ops::Range;

use mmada::kernels::attention::{Attention, Precision, Scratch};

use crate::device::{Argument, Device, races};
use crate::support::{Random, assert_close, portable};

/// How many queries a block has, its threads, and bytes of shared memory.
#[derive(Clone, Copy)]
struct Kernel {
    queries: usize,
    threads: usize,
    shared: usize,
}

const AMPERE_64: Kernel = Kernel { queries: 64, threads: 128, shared: 4 * 64 * 64 * 2 };
const AMPERE_128: Kernel = Kernel { queries: 64, threads: 128, shared: 4 * 64 * 128 * 2 };
/// The table in hopper_attention.cu.
const HOPPER_64: Kernel = Kernel { queries: 192, threads: 512, shared: 189_616 };
const HOPPER_128: Kernel = Kernel { queries: 128, threads: 384, shared: 230_512 };

#[derive(Clone, Copy)]
struct Case<'a> {
    dim: usize,
    heads: usize,
    kv_heads: usize,
    lengths: &'a [usize],
    /// the last so many rows of each sequence have queries; none: all have
    queries: Option<&'a [usize]>,
    /// every which row is no key
    masked: Option<fn(usize) -> bool>,
    /// of queries, so that scores are as large
    scale: f32,
    /// of a row's keys
    key_scale: fn(usize) -> f32,
}

const CASE: Case =
    Case { dim: 64, heads: 1, kv_heads: 1, lengths: &[], queries: None, masked: None, scale: 1.0, key_scale: |_| 1.0 };

fn rounded(numbers: impl Iterator<Item = f32>) -> (Vec<u16>, Vec<f32>) {
    let bits: Vec<u16> = numbers.map(|v| half::bf16::from_f32(v).to_bits()).collect();
    let floats = bits.iter().map(|b| half::bf16::from_bits(*b).to_f32()).collect();
    (bits, floats)
}

/// Where each begins, and the last ends.
fn starts(lengths: &[usize]) -> Vec<usize> {
    let ends = lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// What a launch takes.
struct Inputs<'a> {
    case: Case<'a>,
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
    mask: Option<Vec<bool>>,
    query_starts: Vec<usize>,
    starts: Vec<usize>,
}

impl Inputs<'_> {
    fn run(&self, device: &Device, hopper: bool) -> Vec<f32> {
        let Case { dim, heads, kv_heads, lengths, .. } = self.case;
        let kernel = match (dim, hopper) {
            (64, false) => AMPERE_64,
            (_, false) => AMPERE_128,
            (64, true) => HOPPER_64,
            (_, true) => HOPPER_128,
        };
        let (q, k, v) = (device.upload(&self.q), device.upload(&self.k), device.upload(&self.v));
        let mask = self.mask.as_ref().map(|m| device.upload(&m.iter().map(|m| u8::from(*m)).collect::<Vec<u8>>()));
        let upload = |starts: &[usize]| device.upload(&starts.iter().map(|s| *s as i32).collect::<Vec<i32>>());
        let (query_starts, starts) = (upload(&self.query_starts), upload(&self.starts));
        let out = device.memory::<f32>(self.q.len());
        let longest = self.query_starts.windows(2).map(|w| w[1] - w[0]).max().unwrap();
        let tiles = longest.div_ceil(kernel.queries);
        let mut arguments: Vec<Argument> = vec![
            (&q).into(),
            (&k).into(),
            (&v).into(),
            (&query_starts).into(),
            (&starts).into(),
            mask.as_ref().into(),
            (heads as i32).into(),
            (kv_heads as i32).into(),
            (&out).into(),
        ];
        if hopper {
            arguments.extend([Argument::from(lengths.len() as i32), (longest as i32).into()]);
            // two blocks at most, so that they have several tiles where there are
            let grid = [(tiles * heads * lengths.len()).min(2), 1, 1];
            device.launch(&format!("attention_{dim}_sm90"), grid, kernel.threads, kernel.shared, &arguments);
        } else {
            let grid = [tiles, heads, lengths.len()];
            device.launch(&format!("attention_{dim}"), grid, kernel.threads, kernel.shared, &arguments);
        }
        out.download()
    }
}

fn compare(device: &Device, case: Case) {
    let Case { dim, heads, kv_heads, lengths, scale, key_scale, .. } = case;
    let starts_of_rows = starts(lengths);
    let sequences: Vec<Range<usize>> = starts_of_rows.windows(2).map(|w| w[0]..w[1]).collect();
    let rows = starts_of_rows[lengths.len()];
    let mut rng = Random(dim as u64 + rows as u64);
    let (q_bits, q) = rounded((0..rows * heads * dim).map(|_| rng.float() * scale));
    let (k_bits, k) = rounded((0..rows * kv_heads * dim).map(|i| rng.float() * key_scale(i / (kv_heads * dim))));
    let (v_bits, v) = rounded((0..rows * kv_heads * dim).map(|_| rng.float()));
    let mask: Option<Vec<bool>> = case.masked.map(|masked| (0..rows).map(|row| !masked(row)).collect());
    let mut all = vec![f32::NAN; rows * heads * dim];
    let shape = Attention { heads, kv_heads, head_dim: dim, sequences: &sequences, mask: mask.as_deref() };
    portable(|exec| shape.run(exec, Precision::F32, &mut Scratch::default(), &q, &k, &v, &mut all).unwrap());

    let counts = case.queries.unwrap_or(lengths);
    let with_queries: Vec<Range<usize>> =
        sequences.iter().zip(counts).map(|(rows, n)| (rows.end - n) * heads * dim..rows.end * heads * dim).collect();
    let expected = with_queries.iter().flat_map(|at| &all[at.clone()]).copied().collect::<Vec<f32>>();
    let q = with_queries.iter().flat_map(|at| &q_bits[at.clone()]).copied().collect();
    let query_starts = starts(counts);
    let inputs = Inputs { case, q, k: k_bits, v: v_bits, mask, query_starts, starts: starts_of_rows };
    for hopper in [false, true] {
        if hopper && !device.has_hopper() {
            continue;
        }
        let what = format!("attention of {counts:?} to {lengths:?}, heads of {dim}, for Hopper: {hopper}");
        // probabilities are rounded to 8 bits
        assert_close(&inputs.run(device, hopper), &expected, 4e-3, &what);
    }
}

#[test]
fn sequences_of_different_lengths_attend_to_themselves() {
    let device = Device::new();
    // the last tiles of keys go where the first were
    let lengths: &[usize] = if races() { &[135, 3] } else { &[1, 63, 64, 65, 130, 193, 127, 128, 129, 257] };
    for dim in [64, 128] {
        compare(&device, Case { dim, heads: 2, kv_heads: 2, lengths, ..CASE });
    }
}

#[test]
fn more_keys_than_a_ring_of_tiles_has_room_for() {
    let device = Device::new();
    let lengths: &[usize] = if races() { &[520] } else { &[900, 5, 1057] };
    let queries: &[usize] = if races() { &[3] } else { &[200, 0, 70] };
    for dim in [64, 128] {
        compare(&device, Case { dim, heads: 3, kv_heads: 1, lengths, queries: Some(queries), ..CASE });
    }
}

#[test]
fn several_heads_share_keys_and_values() {
    let device = Device::new();
    compare(&device, Case { heads: 6, kv_heads: 2, lengths: &[37, 20], ..CASE });
    compare(&device, Case { dim: 128, heads: 4, kv_heads: 2, lengths: &[150], queries: Some(&[131]), ..CASE });
}

#[test]
fn keys_that_a_mask_leaves_out_do_not_count_and_a_sequence_without_keys_gets_zeros() {
    let device = Device::new();
    // of the first sequence a whole tile and some more, of the last all
    let masked: fn(usize) -> bool = |row| row < 66 || row % 7 == 3 || row >= 80;
    compare(&device, Case { dim: 128, lengths: &[70, 10, 9], masked: Some(masked), ..CASE });
    // whole tiles at the start, in the middle and at the end of the first, and all keys but one of the second
    let masked: fn(usize) -> bool = |row| matches!(row, 0..140 | 300..520 | 610..) && row != 800;
    let case = Case { heads: 2, lengths: &[700, 290], queries: Some(&[66, 10]), masked: Some(masked), ..CASE };
    for dim in [64, 128] {
        if !races() {
            compare(&device, Case { dim, ..case });
        }
    }
}

#[test]
fn scores_far_apart_do_not_overflow() {
    let device = Device::new();
    for dim in [64, 128] {
        compare(&device, Case { dim, lengths: &[100, 300], queries: Some(&[100, 7]), scale: 300.0, ..CASE });
    }
}

#[test]
fn scores_that_rise_from_tile_to_tile_shrink_what_was_added() {
    let device = Device::new();
    // by little, by much, and down again
    let scales: [fn(usize) -> f32; 3] =
        [|row| row as f32 / 200.0, |row| (row / 64) as f32, |row| (700 - row) as f32 / 100.0];
    for key_scale in scales {
        for dim in [64, 128] {
            compare(&device, Case { dim, lengths: &[700], queries: Some(&[33]), key_scale, ..CASE });
            if races() {
                return;
            }
        }
    }
}
