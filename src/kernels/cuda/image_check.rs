//! Whether the image tokenizer's own kernels compute on a card what they should, before a picture is trusted to them: a
//! normalization and a convolution of each kind, stored and added, beside the processor's. Its products are those that
//! `self_check` has looked at.

use std::sync::atomic::Ordering;

use super::images::{GroupNorm, Matrix, Sides, Terms, convolve, pad};
use super::memory::Memory;
use super::queue::Queue;
use super::self_check::{download, is_wrong, numbers};
use crate::error::Result;
use crate::kernels::conv::{Convolution, Normalization, Precision, Sampling, Scratch};
use crate::kernels::{Epilogue, Kernels};
use crate::memory::try_vec;
use crate::parallel::{Exec, Threads};
use crate::tensor::{self, GgmlType};

const SIDES: Sides = Sides { height: 7, width: 5, channels: 16 };
const POSITIONS: usize = SIDES.height * SIDES.width;
const OUTPUTS: usize = 24;
const COLS: usize = 9 * SIDES.channels;
const GROUPS: usize = 4;
const EPSILON: f32 = 1e-6;
const WHAT: &str = "a check of a graphics card";

/// An error if they do not. Looked at once for a card, while it goes well.
pub fn image_check(queue: &Queue) -> Result<()> {
    let gpu = queue.gpu();
    if gpu.images_are_checked.load(Ordering::Acquire) {
        return Ok(());
    }
    let (x, w) = (numbers(9, POSITIONS * SIDES.channels)?, numbers(10, OUTPUTS * COLS)?);
    let (weight, bias) = (numbers(11, SIDES.channels)?, numbers(12, SIDES.channels)?);
    let biases = numbers(13, OUTPUTS)?;
    let (scale, shift) = normalization(&x, &weight, &bias)?;
    let threads = Threads::new(1)?;
    let exec = Exec::new(&threads, Kernels::best(), None);

    let norm = GroupNorm::new(queue, &weight, &bias)?;
    let map = queue.upload(&x, WHAT)?;
    let sums = Memory::new(gpu, GroupNorm::sums(POSITIONS, SIDES.channels), WHAT)?;
    norm.measure(queue, map.all(), sums.all(), GROUPS, EPSILON)?;
    let input = TwoTerms::new(queue, x.len())?;
    norm.apply(queue, map.all(), true, input.terms())?;
    let (rows, weights) = (queue.upload(&w, WHAT)?, TwoTerms::new(queue, w.len())?);
    pad(queue, rows.all(), COLS, COLS, weights.terms())?;
    let on_card = Matrix { terms: weights.terms(), rows: OUTPUTS, cols: COLS };
    let on_cpu = tensor::Matrix::new(GgmlType::F32, OUTPUTS, COLS, bytemuck::cast_slice(&w))
        .ok_or_else(|| is_wrong(gpu, "sizes"))?;
    let there = queue.upload(&biases, WHAT)?;
    for sampling in [Sampling::Same, Sampling::Down, Sampling::Up] {
        let [height, width] = [SIDES.height, SIDES.width].map(|side| sampling.output_side(side).unwrap_or(0));
        let y = Memory::new(gpu, height * width * OUTPUTS, WHAT)?;
        let mut expected = try_vec(y.len(), WHAT)?;
        let convolution = Convolution {
            weights: &on_cpu,
            bias: &biases,
            kernel: 3,
            x: &x,
            height: SIDES.height,
            width: SIDES.width,
            norm: Some(Normalization { scale: &scale, shift: &shift, swish: true }),
            sampling,
        };
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            convolve(queue, on_card, (input.terms(), SIDES), sampling, there.all(), y.all(), epilogue)?;
            convolution.run(&exec, Precision::Exact, &mut Scratch::default(), &mut expected, epilogue)?;
            if !close(&download(queue, &y)?, &expected) {
                return Err(is_wrong(gpu, "convolutions"));
            }
        }
    }
    gpu.images_are_checked.store(true, Ordering::Release);
    Ok(())
}

/// What a group normalization makes of a map: a scale and a shift for each channel.
fn normalization(x: &[f32], weight: &[f32], bias: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut scale, mut shift) = (try_vec(weight.len(), WHAT)?, try_vec(weight.len(), WHAT)?);
    let width = weight.len() / GROUPS;
    for first in (0..weight.len()).step_by(width) {
        let group = || x.chunks_exact(weight.len()).flat_map(|pixel| &pixel[first..first + width]);
        let count = (POSITIONS * width) as f32;
        let mean = group().sum::<f32>() / count;
        let variance = group().map(|v| (v - mean).powi(2)).sum::<f32>() / count;
        for c in first..first + width {
            scale[c] = weight[c] / (variance + EPSILON).sqrt();
            shift[c] = bias[c] - mean * scale[c];
        }
    }
    Ok((scale, shift))
}

/// Whether all differ by no more than what two terms of bfloat16 leave out explains.
fn close(got: &[f32], expected: &[f32]) -> bool {
    let size = (expected.iter().map(|v| v * v).sum::<f32>() / expected.len() as f32).sqrt();
    got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-3 * size)
}

/// Numbers in two terms.
struct TwoTerms(Memory<u16>, Memory<u16>);

impl TwoTerms {
    fn new(queue: &Queue, len: usize) -> Result<Self> {
        Ok(TwoTerms(Memory::new(queue.gpu(), len, WHAT)?, Memory::new(queue.gpu(), len, WHAT)?))
    }

    fn terms(&self) -> Terms<'_> {
        Terms { first: self.0.all(), rest: Some(self.1.all()) }
    }
}
