//! Weights from their GGUF blocks to panels. int8 and bfloat16 panels are row-major inside a step of 64 bytes (layout:
//! see `int8`), float panels are [k][R].

mod blocks;
mod wide;

use std::ops::Range;

use super::activations::{BF16_STEP, STEP, Scales, WIDE};
use super::int8;
use super::isa::{self, Isa, LANES};
use super::product::Bf16Tiles;
use crate::tensor::{self, GgmlType, Matrix};

/// How an int8 panel looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// weights that share a scale: 16, 32 or 256
    pub group: usize,
    /// activations that share one
    pub x_group: usize,
    /// weights are `scale * q + offset` rather than `scale * q`
    pub offset: bool,
}

impl Shape {
    /// Whether activations share a scale for more elements than sums of integers run over: see [`Scales::Mixed`].
    pub fn mixed(&self) -> bool {
        self.x_group == WIDE && self.group < WIDE
    }
}

/// The fewest weights that share a scale.
pub(super) const SHORTEST_GROUP: usize = 16;

/// Whether `dtype` is multiplied with int8 activations.
pub const fn has_int8(dtype: GgmlType) -> bool {
    blocks::groups(dtype).is_some()
}

/// How weights are multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// With activations as they are.
    F32,
    /// Both rounded to bfloat16, sums in f32.
    Bf16,
    /// Both in int8, sums in int32 over the elements that share a scale.
    Int8(Scales),
}

impl Arithmetic {
    /// What is right for weights of a type. What a second quantization to int8 adds cannot be seen beside the error of
    /// types of up to four bits (benches/NOTES.md), so those take wide scales where `fast` allows it; others keep the
    /// scales of their blocks, or go to bfloat16 where `bf16` says that its products are fast, and that faster than
    /// `short` groups are. Activations have wide scales too where `mixed` says that this is faster and the weights have
    /// less than 8 bits.
    pub(super) const fn of(dtype: GgmlType, fast: bool, bf16: bool, short: bool, mixed: bool) -> Self {
        use GgmlType::*;
        match dtype {
            Q4_0 | Q4_1 | Q4_K | IQ4_NL | IQ4_XS | MXFP4 | Q3_K | Q2_K if fast => Arithmetic::Int8(Scales::Wide),
            Q5_0 | Q5_1 | Q5_K | Q6_K if fast && mixed => Arithmetic::Int8(Scales::Mixed),
            _ if has_int8(dtype) && !(fast && bf16 && short) => Arithmetic::Int8(Scales::Blocks),
            _ if fast && bf16 => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        }
    }
}

/// The int8 panels of `dtype`, a type of [`has_int8`].
pub(super) fn shape(dtype: GgmlType, scales: Scales) -> Shape {
    let (group, offset) = blocks::groups(dtype).expect("a type with an int8 form, checked by matmul's caller");
    match scales {
        Scales::Blocks | Scales::Mixed => Shape { group, x_group: scales.group(), offset },
        Scales::Wide => Shape { group: WIDE, x_group: WIDE, offset: false },
    }
}

/// Where a panel lies in its matrix, and its size.
#[derive(Clone)]
pub(super) struct Place {
    pub rows: Range<usize>,
    /// from a block's start
    pub k: Range<usize>,
    /// rows of the panel
    pub panel_rows: usize,
    /// rows that are computed; those that the matrix does not have are zeros
    pub padded: usize,
    /// elements and bytes of a block of the matrix
    pub block: (usize, usize),
}

impl Place {
    /// The bytes of one row of the matrix.
    #[inline(always)]
    fn bytes<'a>(&self, w: &Matrix<'a>, row: usize) -> &'a [u8] {
        let (block, size) = self.block;
        &w.row(row)[self.k.start / block * size..self.k.end.div_ceil(block) * size]
    }
}

/// Rows that are asked for ahead of the one that is unpacked: a chunk has a few hundred bytes of each, too few for the
/// processor to notice where they are going.
const AHEAD: usize = 4;

/// Asks for the bytes of a row that will be wanted soon.
#[inline(always)]
fn prefetch(w: &Matrix, place: &Place, row: usize) {
    if row < place.rows.end {
        place.bytes(w, row).chunks(64).for_each(|line| isa::prefetch(line.as_ptr()));
    }
}

/// Part of `w` as an int8 panel in `to`. With `biased`, `start` holds `-128 * sum of q`.
#[inline(always)]
pub(super) fn int8_panel<I: Isa>(
    isa: I,
    w: &Matrix,
    place: &Place,
    scales: Scales,
    biased: bool,
    to: int8::WeightsMut,
) {
    let shape = shape(w.dtype(), scales);
    let (r, len) = (place.panel_rows, place.k.len());
    let panel = to.q.as_chunks_mut::<STEP>().0;
    let mut part = Part::default();
    for i in 0..place.padded {
        prefetch(w, place, place.rows.start + i + AHEAD);
        if i >= place.rows.len() {
            part = Part::default();
        }
        for first in (0..len).step_by(WIDE) {
            let n = WIDE.min(len - first);
            if i < place.rows.len() {
                let bytes = place.bytes(w, place.rows.start + i);
                let (block, size) = place.block;
                let bytes = &bytes[first / block * size..][..n / block * size];
                part.unpack(isa, w.dtype(), bytes, n, scales);
            }
            for (s, step) in part.q.as_chunks::<STEP>().0.iter().enumerate().take(n.div_ceil(STEP)) {
                panel[(first / STEP + s) * r + i] = *step;
            }
            let (first, groups) = (first / shape.group, n.div_ceil(shape.group));
            let at = i * int8::groups(shape.group) + first;
            to.scale[at..at + groups].copy_from_slice(&part.scale[..groups]);
            if shape.offset {
                to.offset[at..at + groups].copy_from_slice(&part.offset[..groups]);
            }
            if biased {
                let start = &mut to.start[at..at + groups];
                part.starts(isa, shape.group, start);
            }
        }
    }
}

/// Up to 256 elements of a row in int8.
struct Part {
    q: [i8; WIDE],
    scale: [f32; 16],
    offset: [f32; 16],
}

impl Default for Part {
    fn default() -> Self {
        Part { q: [0; WIDE], scale: [0.0; 16], offset: [0.0; 16] }
    }
}

impl Part {
    /// -128 times the sum of each group.
    #[inline(always)]
    fn starts<I: Isa>(&self, isa: I, group: usize, starts: &mut [i32]) {
        let mut sums = [0; LANES];
        isa.group_sums(&self.q, group, &mut sums);
        for (start, sum) in starts.iter_mut().zip(sums) {
            *start = -128 * sum;
        }
    }

    /// The `n` elements of `bytes`; what lies behind `n` becomes zeros.
    #[inline(always)]
    fn unpack<I: Isa>(&mut self, isa: I, dtype: GgmlType, bytes: &[u8], n: usize, scales: Scales) {
        match scales {
            Scales::Wide => self.scale[0] = wide::unpack(isa, dtype, bytes, n, &mut self.q),
            Scales::Blocks | Scales::Mixed => {
                blocks::unpack(isa, dtype, bytes, &mut self.q, &mut self.scale, &mut self.offset)
            }
        }
        self.q[n..].fill(0);
    }
}

/// Part of `w` as a bfloat16 panel, [step of 32][R][32]: BF16 as it is, other types rounded.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
pub(super) fn bf16_panel<I: Isa>(isa: I, w: &Matrix, place: &Place, panel: &mut [u16], tiles: impl Bf16Tiles) {
    let (r, len) = (place.panel_rows, place.k.len());
    let panel = panel.as_chunks_mut::<BF16_STEP>().0;
    let mut row = [0.0f32; WIDE];
    for i in 0..place.padded {
        if i >= place.rows.len() {
            (0..len.div_ceil(BF16_STEP)).for_each(|s| panel[s * r + i] = [0; BF16_STEP]);
            continue;
        }
        prefetch(w, place, place.rows.start + i + AHEAD);
        let bytes = place.bytes(w, place.rows.start + i);
        if w.dtype() == GgmlType::BF16 {
            for (s, from) in bytes.chunks(2 * BF16_STEP).enumerate() {
                copy_step(from, &mut panel[s * r + i]);
            }
            continue;
        }
        let (block, size) = place.block;
        for first in (0..len).step_by(WIDE) {
            let n = WIDE.min(len - first);
            let bytes = &bytes[first / block * size..][..n / block * size];
            match blocks::groups(w.dtype()) {
                Some((group, offset)) => scaled(isa, w.dtype(), bytes, group, offset, &mut row),
                None => floats(w.dtype(), bytes, &mut row[..n]),
            }
            row[n..n.next_multiple_of(BF16_STEP)].fill(0.0);
            for (s, from) in row[..n.next_multiple_of(BF16_STEP)].as_chunks::<BF16_STEP>().0.iter().enumerate() {
                tiles.round(from, &mut panel[(first / BF16_STEP + s) * r + i]);
            }
        }
    }
}

/// A step of bfloat16, or the beginning of one.
#[inline(always)]
fn copy_step(from: &[u8], to: &mut [u16; BF16_STEP]) {
    let bytes: &mut [u8; 2 * BF16_STEP] = bytemuck::cast_mut(to);
    match <&[u8; 2 * BF16_STEP]>::try_from(from) {
        Ok(from) => *bytes = *from,
        Err(_) => {
            bytes[from.len()..].fill(0);
            bytes[..from.len()].copy_from_slice(from);
        }
    }
    if cfg!(target_endian = "big") {
        to.iter_mut().for_each(|v| *v = u16::from_le(*v));
    }
}

/// Up to 256 elements of a type that has an int8 form as floats: quicker than decoding them, and the same up to rounding.
#[inline(always)]
fn scaled<I: Isa>(isa: I, dtype: GgmlType, bytes: &[u8], group: usize, offset: bool, row: &mut [f32; WIDE]) {
    let mut part = Part::default();
    blocks::unpack(isa, dtype, bytes, &mut part.q, &mut part.scale, &mut part.offset);
    for (i, (to, q)) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(part.q.as_chunks::<LANES>().0).enumerate() {
        let g = i * LANES / group;
        let (scale, offset) = (part.scale[g], if offset { part.offset[g] } else { 0.0 });
        for (to, q) in to.iter_mut().zip(q) {
            *to = f32::from(*q) * scale + offset;
        }
    }
}

/// Rows `rows` and elements `k` of `w` (from a block's start) as a float panel of `r` rows, [k][r].
#[inline(always)]
pub(super) fn f32_panel(w: &Matrix, rows: Range<usize>, k: Range<usize>, r: usize, panel: &mut [f32]) {
    let block = w.dtype().block_len();
    let bytes = k.start / block * w.dtype().block_bytes()..k.end / block * w.dtype().block_bytes();
    let mut row = [0.0f32; 256];
    let row = &mut row[..k.len()];
    for (i, at) in rows.enumerate() {
        floats(w.dtype(), &w.row(at)[bytes.clone()], row);
        for (v, to) in row.iter().zip(panel[i..].iter_mut().step_by(r)) {
            *to = *v;
        }
    }
}

/// Some blocks of a row as floats.
#[inline(always)]
fn floats(dtype: GgmlType, bytes: &[u8], out: &mut [f32]) {
    // the model's loader refuses types that cannot be decoded
    if !tensor::decode(dtype, bytes, out) {
        out.fill(f32::NAN);
    }
}
