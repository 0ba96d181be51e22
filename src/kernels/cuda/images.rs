//! The image tokenizer's kernels as functions of feature maps [positions, channels]. Numbers go into products in bfloat16, in
//! one term or in two, of which the second is what rounding left of the first.

use super::memory::{Memory, Part};
use super::operations::{LARGE, STEP, Weights};
use super::operations::{adds, check, product_bf16, rows_grid};
use super::queue::{Argument, Grid, Queue};
use crate::error::Result;
use crate::kernels::conv::Sampling;
use crate::kernels::product::Epilogue;
use crate::tensor::GgmlType;

/// Numbers in bfloat16, and what that leaves of them where it is needed.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub first: Part<'a, u16>,
    pub rest: Option<Part<'a, u16>>,
}

impl Terms<'_> {
    fn check(&self, len: usize, what: &str) -> Result<()> {
        check(self.first.len() == len && self.rest.is_none_or(|rest| rest.len() == len), what)
    }
}

/// A matrix [rows, cols] in bfloat16, `cols` a multiple of 8.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub terms: Terms<'a>,
    pub rows: usize,
    pub cols: usize,
}

/// `y[n][rows] (=|+=) w x + bias` with x [n, cols]: all products of terms that matter.
pub fn product(
    queue: &Queue,
    w: Matrix,
    (x, n): (Terms, usize),
    bias: Option<Part<'_, f32>>,
    y: Part<'_, f32>,
    epilogue: Epilogue,
) -> Result<()> {
    let pass = |w: Part<'_, u16>, bias, x, rows: usize, cols: usize, epilogue| {
        let w = Weights::new(GgmlType::BF16, rows, cols, w.bytes())?;
        product_bf16(queue, w, (x, cols, n), bias, y, epilogue)
    };
    let (rows, cols) = (w.rows, w.cols);
    pass(w.terms.first, bias, x.first, rows, cols, epilogue)?;
    if let Some(rest) = w.terms.rest {
        pass(rest, None, x.first, rows, cols, Epilogue::Add)?;
    }
    match x.rest {
        Some(rest) => pass(w.terms.first, None, rest, rows, cols, Epilogue::Add),
        None => Ok(()),
    }
}

/// The sides of a feature map that a convolution reads.
#[derive(Clone, Copy, Debug)]
pub struct Sides {
    pub height: usize,
    pub width: usize,
    /// A multiple of 8.
    pub channels: usize,
}

/// A 3x3 convolution, w being [outputs, 3 * 3 * channels]: `y (=|+=)` it `+ bias`, [positions of the output, outputs].
pub fn convolve(
    queue: &Queue,
    w: Matrix,
    (x, sides): (Terms, Sides),
    sampling: Sampling,
    bias: Part<'_, f32>,
    y: Part<'_, f32>,
    epilogue: Epilogue,
) -> Result<()> {
    let pass = |w, bias, x, epilogue| convolve_term(queue, w, (x, sides), sampling, bias, y, epilogue);
    let (rows, cols) = (w.rows, w.cols);
    w.terms.check(rows * cols, "a convolution's weights")?;
    x.check(sides.height * sides.width * sides.channels, "a feature map")?;
    pass((w.terms.first, rows, cols), Some(bias), x.first, epilogue)?;
    if let Some(rest) = w.terms.rest {
        pass((rest, rows, cols), None, x.first, Epilogue::Add)?;
    }
    match x.rest {
        Some(rest) => pass((w.terms.first, rows, cols), None, rest, Epilogue::Add),
        None => Ok(()),
    }
}

fn convolve_term(
    queue: &Queue,
    (w, outputs, cols): (Part<'_, u16>, usize, usize),
    (x, Sides { height, width, channels }): (Part<'_, u16>, Sides),
    sampling: Sampling,
    bias: Option<Part<'_, f32>>,
    y: Part<'_, f32>,
    epilogue: Epilogue,
) -> Result<()> {
    let side = |input| sampling.output_side(input).unwrap_or(0);
    let (out_width, n) = (side(width), side(height).saturating_mul(side(width)));
    let right = cols == 9 * channels && channels.is_multiple_of(8) && y.len() == n.saturating_mul(outputs);
    check(right && bias.is_none_or(|bias| bias.len() == outputs) && i32::try_from(n).is_ok(), "a convolution")?;
    let sampling = match sampling {
        Sampling::Same => 0,
        Sampling::Down => 1,
        Sampling::Up => 2,
    };
    let mut arguments: [Argument; 13] = [
        w.into(),
        (2 * cols as u64).into(),
        (outputs as i32).into(),
        x.into(),
        (height as i32).into(),
        (width as i32).into(),
        (channels as i32).into(),
        (out_width as i32).into(),
        sampling.into(),
        (n as i32).into(),
        bias.into(),
        y.into(),
        adds(epilogue).into(),
    ];
    let grid = LARGE.grid(n, outputs, (LARGE.rows + LARGE.tokens) * STEP);
    // SAFETY: weights, map and result of the sizes that were checked; windows end at the map's sides
    unsafe { queue.launch("convolve_BF16", grid, &mut arguments) }
}

/// Rows of `channels` numbers in bfloat16, filled up with zeros to `padded`, a multiple of 8.
pub fn pad(queue: &Queue, x: Part<'_, f32>, channels: usize, padded: usize, to: Terms) -> Result<()> {
    let positions = x.len() / channels.max(1);
    check(x.len() == positions * channels && padded >= channels && padded.is_multiple_of(8), "padded rows")?;
    to.check(positions * padded, "padded rows")?;
    let mut arguments: [Argument; 6] = [
        x.into(),
        (channels as i32).into(),
        (padded as i32).into(),
        (positions as u64).into(),
        to.first.into(),
        to.rest.into(),
    ];
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch("pad_to_bf16", rows_grid((positions * padded).div_ceil(2048)), &mut arguments) }
}

/// The weights of a group normalization, and what comes of them and a map: a scale and a shift for each channel. There is one
/// of them at a time.
pub struct GroupNorm {
    weight: Memory<f32>,
    bias: Memory<f32>,
    scale: Memory<f32>,
    shift: Memory<f32>,
}

/// Positions whose sums are made by one block of threads.
const BLOCK: usize = 1024;
const NORM: &str = "a group normalization";

impl GroupNorm {
    /// With weights and biases for each channel.
    pub fn new(queue: &Queue, weight: &[f32], bias: &[f32]) -> Result<GroupNorm> {
        check(weight.len() == bias.len(), NORM)?;
        let memory = || Memory::new(queue.gpu(), weight.len(), NORM);
        let (weight, bias) = (queue.upload(weight, NORM)?, queue.upload(bias, NORM)?);
        Ok(GroupNorm { weight, bias, scale: memory()?, shift: memory()? })
    }

    /// Sums that [`GroupNorm::measure`] makes of a map.
    pub fn sums(positions: usize, channels: usize) -> usize {
        positions.div_ceil(BLOCK).saturating_mul(2 * channels)
    }

    /// Finds what brings each group of channels of `x` to mean 0 and variance 1, and on to weights and biases.
    pub fn measure(
        &self,
        queue: &Queue,
        x: Part<'_, f32>,
        sums: Part<'_, f64>,
        groups: usize,
        epsilon: f32,
    ) -> Result<()> {
        let channels = self.weight.len();
        let positions = x.len() / channels.max(1);
        let right = x.len() == positions * channels && i32::try_from(positions).is_ok();
        let room = sums.len() >= GroupNorm::sums(positions, channels);
        check(right && room && groups > 0 && channels.is_multiple_of(groups), NORM)?;
        let blocks = positions.div_ceil(BLOCK);
        let (positions, c) = (Argument::from(positions as i32), Argument::from(channels as i32));
        let mut arguments: [Argument; 4] = [x.into(), positions, c, sums.into()];
        let grid = Grid { blocks: [blocks, channels.div_ceil(256), 1], threads: 256, shared: 0 };
        // SAFETY: a map of the sizes that were checked, and sums for every block and channel
        unsafe { queue.launch("group_norm_sums", grid, &mut arguments) }?;
        let mut arguments: [Argument; 10] = [
            sums.into(),
            (blocks as i32).into(),
            positions,
            c,
            (groups as i32).into(),
            self.weight.all().into(),
            self.bias.all().into(),
            epsilon.into(),
            self.scale.all().into(),
            self.shift.all().into(),
        ];
        let grid = Grid { blocks: [groups, 1, 1], threads: 32, shared: 0 };
        // SAFETY: the sums of above, and a number for every channel
        unsafe { queue.launch("group_norm_scales", grid, &mut arguments) }
    }

    /// A map, normalized, and with `swish` times its logistic function.
    pub fn apply(&self, queue: &Queue, x: Part<'_, f32>, swish: bool, to: Terms) -> Result<()> {
        let channels = self.scale.len();
        check(x.len().is_multiple_of(channels) && channels.is_multiple_of(4), "a normalized map")?;
        to.check(x.len(), "a normalized map")?;
        let mut arguments: [Argument; 8] = [
            x.into(),
            self.scale.all().into(),
            self.shift.all().into(),
            (channels as i32).into(),
            (x.len() as u64).into(),
            i32::from(swish).into(),
            to.first.into(),
            to.rest.into(),
        ];
        // SAFETY: maps of the size that was checked
        unsafe { queue.launch("group_norm_apply", rows_grid(x.len().div_ceil(1024)), &mut arguments) }
    }
}

/// The softmax of rows of `width` numbers times `scale`, filled up with zeros to `padded`, an even number.
pub fn softmax(queue: &Queue, x: Part<'_, f32>, (width, padded): (usize, usize), scale: f32, to: Terms) -> Result<()> {
    let rows = x.len() / width.max(1);
    check(x.len() == rows * width && padded >= width && padded.is_multiple_of(2), "rows of scores")?;
    to.check(rows * padded, "rows of scores")?;
    let mut arguments: [Argument; 6] =
        [x.into(), (width as i32).into(), scale.into(), (padded as i32).into(), to.first.into(), to.rest.into()];
    // SAFETY: rows of the sizes that were checked
    unsafe { queue.launch("softmax_rows", rows_grid(rows), &mut arguments) }
}
