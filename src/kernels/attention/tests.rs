//! Every variant of this machine, by name, against the definition in f64.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::{Attention, Precision, Scratch};
use crate::error::Error;
use crate::kernels::Kernels;
use crate::kernels::tests::Random;
use crate::memory::Budget;
use crate::parallel::{Exec, Threads};

/// Inputs of a call.
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    sequences: Vec<Range<usize>>,
    mask: Option<Vec<bool>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(rng: &mut Random, heads: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) -> Self {
        let mut rows = 0;
        let mut sequences = Vec::new();
        for n in lengths {
            sequences.push(rows..rows + n);
            rows += n;
        }
        let q = rng.floats(rows * heads * head_dim).iter().map(|v| v * 3.0).collect();
        let (k, v) = (rng.floats(rows * kv_heads * head_dim), rng.floats(rows * kv_heads * head_dim));
        Case { heads, kv_heads, head_dim, sequences, mask: None, q, k, v }
    }

    fn shape(&self) -> Attention<'_> {
        let Case { heads, kv_heads, head_dim, .. } = *self;
        Attention { heads, kv_heads, head_dim, sequences: &self.sequences, mask: self.mask.as_deref() }
    }

    fn run(&self, threads: usize, kernels: &'static Kernels, precision: Precision) -> Vec<f32> {
        let threads = Threads::new(threads).unwrap();
        let exec = Exec::new(&threads, kernels, None);
        let mut out = vec![f32::NAN; self.q.len()];
        let mut scratch = Scratch::default();
        self.shape().run(&exec, precision, &mut scratch, &self.q, &self.k, &self.v, &mut out).unwrap();
        out
    }

    /// The definition, on inputs that are rounded as `precision` rounds them, and what it is of the values'
    /// magnitudes, which errors are relative to.
    fn definition(&self, precision: Precision) -> Vec<(f64, f64)> {
        let dim = self.head_dim;
        let round = |v: f32| match precision {
            Precision::F32 => f64::from(v),
            Precision::Bf16 => half::bf16::from_f32(v).to_f64(),
        };
        let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
        let q = |v: f32| match precision {
            Precision::F32 => f64::from(v) * std::f64::consts::LOG2_E / (dim as f64).sqrt(),
            Precision::Bf16 => round(v * scale),
        };
        let q: Vec<f64> = self.q.iter().map(|v| q(*v)).collect();
        let [k, v] = [&self.k, &self.v].map(|x| x.iter().map(|v| round(*v)).collect::<Vec<f64>>());
        let (d, kv_d) = (self.heads * dim, self.kv_heads * dim);
        let mut out = vec![(0.0, 0.0); q.len()];
        for s in &self.sequences {
            let keys: Vec<usize> = s.clone().filter(|j| self.mask.as_ref().is_none_or(|mask| mask[*j])).collect();
            for (i, h) in s.clone().flat_map(|i| (0..self.heads).map(move |h| (i, h))) {
                let at = h / (self.heads / self.kv_heads) * dim;
                let q = &q[i * d + h * dim..][..dim];
                let dot = |j: &usize| q.iter().zip(&k[j * kv_d + at..][..dim]).map(|(a, b)| a * b).sum::<f64>();
                let scores: Vec<f64> = keys.iter().map(dot).collect();
                let peak = scores.iter().copied().fold(f64::MIN, f64::max);
                let p: Vec<f64> = scores.iter().map(|x| (x - peak).exp2()).collect();
                let total: f64 = p.iter().sum();
                for (c, out) in out[i * d + h * dim..][..dim].iter_mut().enumerate() {
                    for (j, p) in keys.iter().zip(&p) {
                        let v = v[j * kv_d + at + c];
                        *out = (out.0 + p / total * v, out.1 + p / total * v.abs());
                    }
                }
            }
        }
        out
    }

    /// Every variant, each with several numbers of threads, which do not change a bit.
    fn check(&self, threads: &[usize]) {
        for (kernels, precision) in variants() {
            let want = self.definition(precision);
            // f32: a score of 100 from 128 terms is off by some 1e-4, and so is its exponential; bfloat16: 0.5% of a probability is cut off, 0.18% is the exponential's
            let bound = if precision == Precision::F32 { 2e-4 } else { 7.5e-3 };
            let mut first = Vec::new();
            for count in threads {
                let got = self.run(*count, kernels, precision);
                for (i, (got, (want, size))) in got.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= bound * size + 1e-30,
                        "{} {precision:?}, {} heads of {}, {:?}, at {i}: {got} for {want}",
                        kernels.name(),
                        self.heads,
                        self.head_dim,
                        self.sequences
                    );
                }
                assert!(first.is_empty() || first == got, "{} {precision:?}, {count} threads", kernels.name());
                first = got;
            }
        }
    }
}

fn variants() -> impl Iterator<Item = (&'static Kernels, Precision)> {
    let in_f32 = Kernels::available().iter().map(|k| (k, Precision::F32));
    let in_bf16 = Kernels::available().iter().filter(|k| k.has_bf16()).map(|k| (k, Precision::Bf16));
    in_f32.chain(in_bf16)
}

#[test]
fn attention_agrees_with_the_definition_for_several_sequences_and_grouped_heads() {
    let mut rng = Random(7);
    let cases: [(usize, usize, usize, &[usize]); 6] = [
        (1, 1, 4, &[1]),
        (4, 4, 64, &[70, 1, 69]),
        (6, 2, 20, &[33, 128]),
        (2, 1, 128, &[15, 16, 17, 33, 65, 257]),
        (1, 1, 33, &[288, 31]),
        (2, 2, 160, &[90]),
    ];
    for (heads, kv_heads, head_dim, lengths) in cases {
        Case::new(&mut rng, heads, kv_heads, head_dim, lengths).check(&[1, 3]);
    }
}

#[test]
fn early_keys_count_as_much_as_late_ones() {
    let (keys, dim) = (4096, 64);
    let mut case = Case::new(&mut Random(14), 1, 1, dim, &[keys]);
    case.q.truncate(2 * dim);
    case.q.fill(0.0);
    for (row, v) in case.v.chunks_mut(dim).enumerate() {
        v.fill(if row < keys / 2 { 1.0 } else { -1.0 });
    }
    let threads = Threads::new(2).unwrap();
    for (kernels, precision) in variants() {
        let exec = Exec::new(&threads, kernels, None);
        let (mut out, mut scratch) = (vec![f32::NAN; 2 * dim], Scratch::default());
        let (q, k, v, queries) = (&case.q, &case.k, &case.v, std::slice::from_ref(&(0..2)));
        case.shape().run_queries(&exec, precision, &mut scratch, queries, q, k, v, &mut out).unwrap();
        assert!(out.iter().all(|y| y.abs() < 1e-4), "{} {precision:?}: {}", kernels.name(), out[0]);
    }
}

#[test]
fn attention_over_a_picture_and_over_a_long_sequence_is_right_with_any_number_of_threads() {
    let mut rng = Random(8);
    Case::new(&mut rng, 2, 1, 64, &[1057, 40]).check(&[1, 2, 3, 7, 16]);
    // more packed keys than stay near: several units of queries take turns
    Case::new(&mut rng, 1, 1, 512, &[1100]).check(&[1, 2]);
}

#[test]
fn keys_that_a_mask_leaves_out_are_not_attended_to() {
    let mut rng = Random(9);
    for (heads, head_dim, lengths) in [(2, 64, &[40, 7, 300, 33][..]), (1, 10, &[64, 1, 2])] {
        let mut case = Case::new(&mut rng, heads, heads, head_dim, lengths);
        let mut mask: Vec<bool> =
            (0..case.sequences.last().unwrap().end).map(|_| !rng.bits().is_multiple_of(3)).collect();
        mask[0] = true;
        mask[case.sequences[1].clone()].fill(false); // nothing to attend to: zeros
        // what is left out may hold anything
        for row in (0..mask.len()).filter(|row| !mask[*row]) {
            let width = heads * head_dim;
            case.k[row * width..][..width].fill(f32::NAN);
            case.v[row * width..][..width].fill(f32::INFINITY);
        }
        case.mask = Some(mask);
        case.check(&[1, 3]);
    }
}

#[test]
fn scores_that_grow_from_key_to_key_do_not_overflow() {
    let mut rng = Random(10);
    let (dim, n) = (64, 700);
    let mut case = Case::new(&mut rng, 1, 1, dim, &[n]);
    case.v.iter_mut().for_each(|v| *v *= 1e12);
    // whole numbers, of which no sum is rounded: scores are as large as those of the keys before by up to 900
    for (i, q) in case.q.iter_mut().enumerate() {
        let sign = [1.0, -1.0, 0.0][i / dim % 3];
        *q = sign * (dim as f32).sqrt() / std::f32::consts::LOG2_E;
    }
    for (i, k) in case.k.iter_mut().enumerate() {
        *k = [0.0, 14.0, -9.0, 3.0, 9.0, 13.0][i / dim / 120] + (rng.bits() % 2) as f32;
    }
    case.check(&[1, 2]);
}

#[test]
fn some_queries_get_what_they_get_among_all() {
    let mut rng = Random(13);
    let mut case = Case::new(&mut rng, 2, 1, 64, &[300, 41, 70]);
    // some rows whose scores grow, so that their sums pass every limit; the others' do not
    for row in (0..case.q.len() / 128).step_by(3) {
        case.q[row * 128..][..128].iter_mut().for_each(|q| *q = 40.0);
    }
    for (row, k) in case.k.chunks_mut(64).enumerate() {
        k.iter_mut().for_each(|k| *k += row as f32 / 50.0);
    }
    let wanted: Vec<usize> = (0..411).filter(|row| !(300..341).contains(row) && row % 7 < 3).collect();
    let first = wanted.iter().filter(|row| **row < 300).count();
    let queries = [0..first, first..first, first..wanted.len()];
    let gather =
        |rows: &[f32]| -> Vec<f32> { wanted.iter().flat_map(|row| rows[row * 128..][..128].to_vec()).collect() };
    for (kernels, precision) in variants() {
        for count in [1, 3] {
            let threads = Threads::new(count).unwrap();
            let exec = Exec::new(&threads, kernels, None);
            let (q, mut out) = (gather(&case.q), vec![f32::NAN; wanted.len() * 128]);
            let mut scratch = Scratch::default();
            let shape = case.shape();
            shape.run_queries(&exec, precision, &mut scratch, &queries, &q, &case.k, &case.v, &mut out).unwrap();
            assert_eq!(out, gather(&case.run(count, kernels, precision)), "{} {precision:?} {count}", kernels.name());
        }
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let mut rng = Random(11);
    let mut case = Case::new(&mut rng, 1, 1, 64, &[600]);
    case.q[5 * 64 + 3] = f32::NAN;
    for (kernels, precision) in variants() {
        let got = case.run(1, kernels, precision);
        let want = case.definition(precision);
        for (i, got) in got.iter().enumerate() {
            match i / 64 {
                5 => assert!(got.is_nan(), "{} {precision:?}: {got}", kernels.name()),
                _ => assert!((f64::from(*got) - want[i].0).abs() <= 7.5e-3 * want[i].1, "{} {i}", kernels.name()),
            }
        }
    }
}

#[test]
fn packed_keys_count_against_the_budget() {
    let mut rng = Random(12);
    let case = Case::new(&mut rng, 2, 2, 64, &[100, 3]);
    let threads = Threads::new(1).unwrap();
    for kernels in Kernels::available().iter().filter(|k| k.has_bf16()) {
        let bytes = Scratch::bytes(100, 2, 64) + Scratch::bytes(3, 2, 64);
        let mut out = vec![0.0; case.q.len()];
        for (limit, fits) in [(bytes - 1, false), (bytes, true)] {
            let budget = Budget::new(Some(limit));
            let exec = Exec::new(&threads, kernels, None).within(&budget);
            let mut scratch = Scratch::default();
            let run = case.shape().run(&exec, Precision::Bf16, &mut scratch, &case.q, &case.k, &case.v, &mut out);
            assert_eq!(run.is_ok(), fits, "{run:?}");
            assert_eq!(budget.used(), if fits { bytes } else { 0 });
        }
    }
}

#[test]
fn a_cancelled_attention_ends_with_an_error() {
    let case = Case::new(&mut Random(13), 2, 1, 64, &[70]);
    let threads = Threads::new(2).unwrap();
    let (go, stop) = (AtomicBool::new(false), AtomicBool::new(true));
    for (kernels, precision) in variants() {
        for cancel in [&go, &stop] {
            let exec = Exec::new(&threads, kernels, Some(cancel));
            let (mut scratch, mut out) = (Scratch::default(), vec![0.0; case.q.len()]);
            let run = case.shape().run(&exec, precision, &mut scratch, &case.q, &case.k, &case.v, &mut out);
            match std::ptr::eq(cancel, &go) {
                true => run.unwrap(),
                false => assert!(matches!(run, Err(Error::Cancelled)), "{} {precision:?} {run:?}", kernels.name()),
            }
        }
    }
}
