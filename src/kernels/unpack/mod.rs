//! Weights from their GGUF blocks to panels. int8 and bfloat16 panels are row-major inside a step of 64 bytes (layout:
//! see `int8`), float panels are [k][R].

mod blocks;
mod wide;

use std::ops::Range;

use super::activations::{BF16_STEP, STEP, Scales, WIDE};
use super::int8;
use super::isa::{self, Isa, LANES};
use super::product::Bf16Tiles;
use crate::tensor::block::Half;
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

/// Rows that are asked for ahead of the one that becomes bfloat16.
const AHEAD: usize = 4;

/// The bytes of a place's rows.
#[derive(Clone, Copy)]
struct Bytes<'a, 'w> {
    w: &'a Matrix<'w>,
    place: &'a Place,
    /// of a row of the matrix
    start: usize,
    end: usize,
}

impl<'a, 'w> Bytes<'a, 'w> {
    #[inline(always)]
    fn new(w: &'a Matrix<'w>, place: &'a Place) -> Self {
        let (block, size) = place.block;
        Bytes { w, place, start: place.k.start / block * size, end: place.k.end.div_ceil(block) * size }
    }

    /// Of row `i` of the place.
    #[inline(always)]
    fn row(&self, i: usize) -> &'w [u8] {
        &self.w.row(self.place.rows.start + i)[self.start..self.end]
    }

    /// Asks for what will be wanted soon: row `i` of the place, or behind its last row one of the next place along k. A chunk
    /// has a few hundred bytes of each row, too few for the processor to notice where they are going.
    #[inline(always)]
    fn prefetch(&self, i: usize) {
        const LINE: usize = 64;
        let (count, len) = (self.place.rows.len(), self.end - self.start);
        let (i, skip) = if i < count { (i, 0) } else { (i - count, len) };
        if i >= count {
            return;
        }
        let row = self.w.row(self.place.rows.start + i);
        let len = (row.len() - self.start).saturating_sub(skip).min(len);
        let first = row.as_ptr().wrapping_add(self.start + skip);
        // the lines from the one that it begins in
        let lines = if len == 0 { 0 } else { (first.addr() % LINE + len).div_ceil(LINE) };
        (0..lines).for_each(|line| isa::prefetch(first.wrapping_add(line * LINE)));
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
    mut to: int8::WeightsMut,
) {
    let (bytes, shape) = (Bytes::new(w, place), shape(w.dtype(), scales));
    let panel = Panel { dtype: w.dtype(), bytes, shape, biased };
    let mut wide = wide::Rows::default();
    for rows in (0..place.rows.len()).step_by(LANES).map(|first| first..place.rows.len().min(first + LANES)) {
        for chunk in panel.chunks() {
            match scales {
                Scales::Wide => panel.wide(isa, rows.clone(), &chunk, &mut wide, &mut to),
                Scales::Blocks | Scales::Mixed => panel.blocks(isa, rows.clone(), &chunk, &mut to),
            }
        }
    }
    panel.fill_up(&mut to);
}

/// An int8 panel of a place.
struct Panel<'a, 'w> {
    dtype: GgmlType,
    bytes: Bytes<'a, 'w>,
    shape: Shape,
    biased: bool,
}

impl Panel<'_, '_> {
    fn chunks(&self) -> impl Iterator<Item = Chunk> {
        let ((block, size), len) = (self.bytes.place.block, self.bytes.place.k.len());
        (0..len).step_by(WIDE).map(move |start| {
            let end = len.min(start + WIDE);
            Chunk { start, len: end - start, bytes: start / block * size..end / block * size }
        })
    }

    /// The bytes of a chunk of row `i` of the place.
    #[inline(always)]
    fn bytes_of(&self, i: usize, chunk: &Chunk) -> &[u8] {
        &self.bytes.row(i)[chunk.bytes.clone()]
    }

    /// Asks for the bytes of a row that will be wanted soon, once.
    #[inline(always)]
    fn prefetch(&self, i: usize, chunk: &Chunk) {
        if chunk.start == 0 {
            self.bytes.prefetch(i + LANES);
        }
    }

    /// Where the numbers of the groups of a chunk of row `i` are.
    #[inline(always)]
    fn groups(&self, i: usize, chunk: &Chunk) -> Range<usize> {
        let at = i * int8::groups(self.shape.group) + chunk.start / self.shape.group;
        at..at + chunk.len.div_ceil(self.shape.group)
    }

    /// Writes a chunk of row `i`; what lies behind its last element becomes zeros.
    #[inline(always)]
    fn write(&self, i: usize, chunk: &Chunk, q: &mut [i8; WIDE], to: &mut int8::WeightsMut) {
        let r = self.bytes.place.panel_rows;
        let to = &mut to.q.as_chunks_mut::<STEP>().0[chunk.start / STEP * r + i..];
        if chunk.len < WIDE {
            q[chunk.len..].fill(0);
        }
        for (s, step) in q.as_chunks::<STEP>().0.iter().enumerate().take(chunk.len.div_ceil(STEP)) {
            to[s * r] = *step;
        }
    }

    /// Up to 16 rows with one scale for a chunk.
    #[inline(always)]
    fn wide<I: Isa>(
        &self,
        isa: I,
        rows: Range<usize>,
        chunk: &Chunk,
        wide: &mut wide::Rows,
        to: &mut int8::WeightsMut,
    ) {
        for (lane, i) in rows.clone().enumerate() {
            wide.read(self.dtype, lane, self.bytes_of(i, chunk));
        }
        wide.fit(isa, self.dtype);
        let mut q = [0; WIDE];
        let mut sums = [[0u32; LANES]; LANES];
        for (lane, i) in rows.clone().enumerate() {
            self.prefetch(i, chunk);
            wide.unpack(isa, self.dtype, lane, self.bytes_of(i, chunk), chunk.len, &mut q);
            self.write(i, chunk, &mut q, to);
            if self.biased {
                isa.partial_sums(&q, bytemuck::cast_mut(&mut sums[lane]));
            }
        }
        let starts = if self.biased { starts(isa, &sums) } else { [0.0; LANES] };
        for (lane, i) in rows.enumerate() {
            let at = self.groups(i, chunk).start;
            to.scale[at] = wide.scales[lane];
            if self.biased {
                to.start[at] = starts[lane] as i32;
            }
        }
    }

    /// Rows with the scales of their blocks.
    #[inline(always)]
    fn blocks<I: Isa>(&self, isa: I, rows: Range<usize>, chunk: &Chunk, to: &mut int8::WeightsMut) {
        let mut part = Part::default();
        for i in rows {
            self.prefetch(i, chunk);
            let Part { q, scale, offset } = &mut part;
            blocks::unpack(isa, self.dtype, self.bytes_of(i, chunk), q, scale, offset);
            self.write(i, chunk, q, to);
            let at = self.groups(i, chunk);
            copy(&mut to.scale[at.clone()], scale);
            if self.shape.offset {
                copy(&mut to.offset[at.clone()], offset);
            }
            if self.biased {
                let mut starts = [0; LANES];
                isa.group_starts(q, self.shape.group, &mut starts);
                copy(&mut to.start[at], &starts);
            }
        }
    }

    /// Makes the rows zeros that the matrix does not have.
    #[inline(always)]
    fn fill_up(&self, to: &mut int8::WeightsMut) {
        let place = self.bytes.place;
        for (i, chunk) in (place.rows.len()..place.padded).flat_map(|i| self.chunks().map(move |chunk| (i, chunk))) {
            self.write(i, &chunk, &mut [0; WIDE], to);
            let at = self.groups(i, &chunk);
            to.scale[at.clone()].fill(0.0);
            if self.shape.offset {
                to.offset[at.clone()].fill(0.0);
            }
            if self.biased {
                to.start[at].fill(0);
            }
        }
    }
}

/// Up to 256 elements of a place's chunk, whole blocks.
struct Chunk {
    start: usize,
    len: usize,
    /// of a row of the place
    bytes: Range<usize>,
}

/// The first numbers of `from`. As many as a whole chunk has go without a call.
#[inline(always)]
fn copy<T: Copy>(to: &mut [T], from: &[T; 16]) {
    match to.len() {
        16 => to[..16].copy_from_slice(from),
        8 => to[..8].copy_from_slice(&from[..8]),
        len => to.copy_from_slice(&from[..len]),
    }
}

/// -128 times the sum of each row of sums of int8: all of them are whole numbers below 2^24, which floats hold.
#[inline(always)]
fn starts<I: Isa>(isa: I, sums: &[[u32; LANES]; LANES]) -> [f32; LANES] {
    let (mut by_part, mut starts) = ([[0; LANES]; LANES], [0.0; LANES]);
    isa.transpose(sums, &mut by_part);
    let mut total = isa.splat(0.0);
    for part in &by_part {
        total = isa.add(total, isa.to_f32(isa.load_i32(bytemuck::cast_ref(part))));
    }
    isa.store(isa.mul(total, isa.splat(-128.0)), &mut starts);
    starts
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

/// Part of `w` as a bfloat16 panel, [step of 32][R][32]: BF16 as it is, other types rounded.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
pub(super) fn bf16_panel<I: Isa>(isa: I, w: &Matrix, place: &Place, panel: &mut [u16], tiles: impl Bf16Tiles) {
    let (r, len) = (place.panel_rows, place.k.len());
    let panel = panel.as_chunks_mut::<BF16_STEP>().0;
    let (from, mut row) = (Bytes::new(w, place), [0.0f32; WIDE]);
    for i in 0..place.padded {
        if i >= place.rows.len() {
            (0..len.div_ceil(BF16_STEP)).for_each(|s| panel[s * r + i] = [0; BF16_STEP]);
            continue;
        }
        from.prefetch(i + AHEAD);
        let bytes = from.row(i);
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
                None if w.dtype() == GgmlType::F16 => halves(isa, bytes, &mut row[..n]),
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

/// Halves as floats.
#[inline(always)]
fn halves<I: Isa>(isa: I, bytes: &[u8], out: &mut [f32]) {
    let halves: &[Half] = bytemuck::cast_slice(bytes);
    let (from, to) = (halves.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (from, to) in from.0.iter().zip(to.0) {
        isa.store(isa.load_f16(from), to);
    }
    for (from, to) in from.1.iter().zip(to.1) {
        *to = from.get();
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
