//! Weights whose panels are made once and kept, for those who have the memory: products then unpack nothing, which is
//! most of their time where there are few columns.
//!
//! Which form is kept follows from how the weights are multiplied ([`Arithmetic`]):
//!
//! ```text
//! int8, wide scales      1 byte a weight, and 4 or 8 bytes for every 256
//! int8, block scales     1 byte, and 4 to 12 bytes for every group of 16 or 32
//! bfloat16               2 bytes
//! f32                    nothing is kept: it would take 4 bytes
//! ```
//!
//! (Sums of groups are kept where the instruction set wants activations with 128 added, offsets where the type has them.)
//! They are the panels that a product makes for itself, so results are the same to the last bit.
//!
//! ```text
//! [panel of R rows][chunk of k][scale | start | offset | numbers]
//! ```
//!
//! with the layouts of `int8`; every part fills whole cache lines, and what the last panel and step have too much is zero.

use std::mem::MaybeUninit;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::activations::{BF16_STEP, STEP, STEP_BYTES};
use super::dispatch::Kernels;
use super::int8;
use super::isa::{CELLS, Isa, LANES, Op};
use super::product::{BF16_CHUNK, Bf16Tiles};
use super::unpack::{self, Arithmetic, Place, Shape};
use crate::error::{Error, Result};
use crate::memory::{Line, try_with_capacity};
use crate::parallel::Exec;
use crate::tensor::{GgmlType, Matrix};

/// The panels of a matrix, as one instruction set and one arithmetic want them.
pub struct Packed {
    lines: Vec<Line>,
    layout: Layout,
    rows: usize,
    cols: usize,
}

/// What is in a panel, and where; lengths in lines. A step of a row is a line, be it int8 or bfloat16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layout {
    dtype: GgmlType,
    arithmetic: Arithmetic,
    panel_rows: usize,
    biased: bool,
    /// the parts of a chunk before its numbers
    scale: usize,
    start: usize,
    offset: usize,
}

/// Steps of a chunk.
const STEPS: usize = int8::CHUNK / STEP;
const _: () = assert!(STEPS == BF16_CHUNK / BF16_STEP && STEP == size_of::<Line>() && STEP_BYTES == LANES * CELLS);

impl Layout {
    /// `None` for what is not kept.
    fn new(kernels: &Kernels, dtype: GgmlType, arithmetic: Arithmetic) -> Option<Self> {
        let panel_rows = kernels.panel_rows(arithmetic);
        let of = |shape: Option<Shape>, biased| {
            let lines = |there: bool| match shape {
                Some(shape) if there => (panel_rows * int8::groups(shape.group) * 4).div_ceil(size_of::<Line>()),
                _ => 0,
            };
            let (scale, start, offset) = (lines(true), lines(biased), lines(shape.is_some_and(|s| s.offset)));
            Layout { dtype, arithmetic, panel_rows, biased, scale, start, offset }
        };
        match arithmetic {
            Arithmetic::Int8(scales) if unpack::has_int8(dtype) => {
                Some(of(Some(unpack::shape(dtype, scales)), kernels.biased(scales)))
            }
            Arithmetic::Bf16 if kernels.has_bf16() => Some(of(None, false)),
            _ => None,
        }
    }

    /// Elements of a step.
    fn step(&self) -> usize {
        if self.arithmetic == Arithmetic::Bf16 { BF16_STEP } else { STEP }
    }

    /// Lines of a chunk before its numbers.
    fn sides(&self) -> usize {
        self.scale + self.start + self.offset
    }

    /// Lines of a whole chunk.
    fn chunk(&self) -> usize {
        self.sides() + STEPS * self.panel_rows
    }

    /// Lines of a panel of rows of `cols` elements.
    fn panel(&self, cols: usize) -> usize {
        let steps = cols.div_ceil(self.step());
        steps.div_ceil(STEPS) * self.sides() + steps * self.panel_rows
    }

    /// Lines of a matrix.
    fn matrix(&self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(self.panel_rows).saturating_mul(self.panel(cols))
    }
}

impl Packed {
    /// Bytes that [`Packed::new`] takes.
    pub fn bytes(kernels: &Kernels, dtype: GgmlType, (rows, cols): (usize, usize), arithmetic: Arithmetic) -> usize {
        Layout::new(kernels, dtype, arithmetic)
            .map_or(0, |layout| layout.matrix(rows, cols).saturating_mul(size_of::<Line>()))
    }

    /// The panels of `w` for products in `arithmetic` on the instruction set of `exec`; `None` for weights that are
    /// multiplied as they are, in f32.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(exec: &Exec, w: &Matrix, arithmetic: Arithmetic) -> Result<Option<Self>> {
        let Some(layout) = Layout::new(exec.kernels, w.dtype(), arithmetic) else { return Ok(None) };
        let (rows, cols) = (w.rows(), w.cols());
        let len = layout.matrix(rows, cols);
        let mut lines: Vec<Line> = try_with_capacity(len, "a packed copy of weights")?;
        advise_huge_pages(&lines);
        let room = lines
            .spare_capacity_mut()
            .get_mut(..len)
            .ok_or_else(|| Error::Internal("a vector has less room than it was asked for".to_owned()))?;
        let make = |(i, room): (usize, &mut [MaybeUninit<Line>])| {
            room.fill(MaybeUninit::new(Line::zeroed()));
            // SAFETY: every line was just written; the type says no more than that
            let lines = unsafe { &mut *(std::ptr::from_mut(room) as *mut [Line]) };
            let first = i * layout.panel_rows;
            let place = Place {
                rows: first..rows.min(first + layout.panel_rows),
                k: 0..cols,
                panel_rows: layout.panel_rows,
                padded: rows.min(first + layout.panel_rows) - first,
                block: (w.dtype().block_len(), w.dtype().block_bytes()),
            };
            exec.kernels.pack(PackPanel { w, layout, place, lines });
        };
        let panel = layout.panel(cols).max(1);
        exec.run(|| room.par_chunks_mut(panel).enumerate().for_each(make));
        // SAFETY: there is room for `len` lines (looked at above), and each belongs to a panel that was written
        unsafe { lines.set_len(len) };
        Ok(Some(Packed { lines, layout, rows, cols }))
    }

    /// Rows and columns of the matrix.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// # Panics
    /// When these are not the panels that `kernels` multiply weights of `dtype` with in `arithmetic`.
    pub(super) fn expect_for(&self, kernels: &Kernels, dtype: GgmlType, arithmetic: Arithmetic) {
        assert_eq!(Layout::new(kernels, dtype, arithmetic), Some(self.layout), "panels made for something else");
    }

    /// The chunk that begins with element `k` of the panel that begins with `row`.
    fn chunk(&self, row: usize, k: usize) -> &[Line] {
        let Layout { panel_rows, .. } = self.layout;
        let panel = self.layout.panel(self.cols);
        let lines = &self.lines[row / panel_rows * panel..][..panel];
        let at = k / (STEPS * self.layout.step()) * self.layout.chunk();
        &lines[at..lines.len().min(at + self.layout.chunk())]
    }

    /// All of the chunk that begins with `row` and `k`.
    #[inline]
    pub(super) fn bytes_at(&self, row: usize, k: usize) -> &[u8] {
        bytemuck::cast_slice(self.chunk(row, k))
    }

    /// The int8 panel that begins with `row` and `k`.
    #[inline]
    pub(super) fn int8(&self, row: usize, k: usize) -> int8::Weights<'_> {
        let Layout { scale, start, offset, .. } = self.layout;
        let (scale, rest) = self.chunk(row, k).split_at(scale);
        let (start, rest) = rest.split_at(start);
        let (offset, q) = rest.split_at(offset);
        int8::Weights {
            q: bytemuck::cast_slice(q),
            scale: bytemuck::cast_slice(scale),
            start: bytemuck::cast_slice(start),
            offset: bytemuck::cast_slice(offset),
        }
    }

    /// The bfloat16 panel that begins with `row` and `k`.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
    pub(super) fn bf16(&self, row: usize, k: usize) -> &[u16] {
        bytemuck::cast_slice(self.chunk(row, k))
    }
}

/// One panel that is made, all of its chunks.
pub(super) struct PackPanel<'a> {
    w: &'a Matrix<'a>,
    layout: Layout,
    /// all of k
    place: Place,
    /// zeros
    lines: &'a mut [Line],
}

impl PackPanel<'_> {
    #[cfg(target_arch = "x86_64")] // elsewhere there is nothing to choose
    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.layout.arithmetic
    }

    /// In bfloat16.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
    pub(super) fn bf16<I: Isa>(self, isa: I, tiles: impl Bf16Tiles) {
        let PackPanel { w, layout, place, lines } = self;
        for (i, lines) in lines.chunks_mut(layout.chunk()).enumerate() {
            let k = i * BF16_CHUNK..place.k.end.min((i + 1) * BF16_CHUNK);
            unpack::bf16_panel(isa, w, &Place { k, ..place.clone() }, bytemuck::cast_slice_mut(lines), tiles);
        }
    }
}

impl Op for PackPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let PackPanel { w, layout, place, lines } = self;
        let Arithmetic::Int8(scales) = layout.arithmetic else {
            unreachable!("`Kernels::pack` looks for an instruction set that has bfloat16, and floats are not kept")
        };
        for (i, lines) in lines.chunks_mut(layout.chunk()).enumerate() {
            let k = i * int8::CHUNK..place.k.end.min((i + 1) * int8::CHUNK);
            let (scale, rest) = lines.split_at_mut(layout.scale);
            let (start, rest) = rest.split_at_mut(layout.start);
            let (offset, q) = rest.split_at_mut(layout.offset);
            let to = int8::WeightsMut {
                q: bytemuck::cast_slice_mut(q),
                scale: bytemuck::cast_slice_mut(scale),
                start: bytemuck::cast_slice_mut(start),
                offset: bytemuck::cast_slice_mut(offset),
            };
            unpack::int8_panel(isa, w, &Place { k, ..place.clone() }, scales, layout.biased, to);
        }
    }
}

/// Asks for pages of 2 MiB, which memory that is only ever read from front to back should have: it is a wish, and the
/// answer does not matter.
#[allow(clippy::ptr_arg)] // all of its room, not only what is filled
fn advise_huge_pages(lines: &Vec<Line>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let begin = lines.as_ptr().addr().next_multiple_of(PAGE);
        let end = (lines.as_ptr().addr() + lines.capacity() * size_of::<Line>()) / PAGE * PAGE;
        if begin < end {
            let at = lines.as_ptr().with_addr(begin).cast_mut().cast();
            // SAFETY: the range lies inside memory that `lines` owns; advice changes none of it
            unsafe { libc::madvise(at, end - begin, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = lines;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Scales;
    use crate::parallel::Threads;

    #[test]
    fn what_is_kept_has_the_size_that_was_said_and_that_the_form_has() {
        let threads = Threads::new(2).unwrap();
        // bytes of a weight, weights that share a scale, and whether there is an offset beside it
        for (dtype, arithmetic, (weight, group, offset)) in [
            (GgmlType::Q4_1, Arithmetic::Int8(Scales::Blocks), (1, 32, true)),
            (GgmlType::Q6_K, Arithmetic::Int8(Scales::Blocks), (1, 16, false)),
            (GgmlType::Q6_K, Arithmetic::Int8(Scales::Mixed), (1, 16, false)),
            (GgmlType::Q4_K, Arithmetic::Int8(Scales::Wide), (1, 256, false)),
            (GgmlType::BF16, Arithmetic::Bf16, (2, usize::MAX, false)),
        ] {
            for kernels in Kernels::available().iter().filter(|k| arithmetic != Arithmetic::Bf16 || k.has_bf16()) {
                let biased = matches!(arithmetic, Arithmetic::Int8(scales) if kernels.biased(scales));
                let panel = kernels.panel_rows(arithmetic);
                for (rows, cols) in [(1, 256), (panel, 512), (panel + 1, 768), (3 * panel + 8, 2304)] {
                    let bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols).unwrap()).map(|i| (i * 37) as u8).collect();
                    let w = Matrix::new(dtype, rows, cols, &bytes).unwrap();
                    let packed = Packed::new(&Exec::new(&threads, kernels, None), &w, arithmetic).unwrap().unwrap();
                    assert_eq!(packed.shape(), (rows, cols));
                    let what = format!("{dtype} {} {rows} x {cols}", kernels.name());
                    let kept = packed.lines.len() * 64;
                    assert_eq!(kept, Packed::bytes(kernels, dtype, (rows, cols), arithmetic), "{what}");
                    // whole panels; the last chunk of 512 has room for the scales of all, and parts fill whole lines
                    let (rows, chunks) = (rows.next_multiple_of(panel), cols.div_ceil(512));
                    let sides = if group > cols { 0 } else { 1 + usize::from(biased) + usize::from(offset) };
                    let scales = chunks * (512 / group.min(512)) * 4 * sides * rows;
                    let least = rows * cols * weight + scales;
                    let lines = rows / panel * chunks * sides * 63;
                    assert!((least..=least + lines).contains(&kept), "{what}: {kept}, not {least} and up to {lines}");
                }
            }
        }
    }

    #[test]
    fn the_size_of_more_than_there_can_be_does_not_overflow() {
        let kernels = Kernels::best();
        let said = Packed::bytes(kernels, GgmlType::Q4_0, (usize::MAX / 2, 1 << 40), Arithmetic::Int8(Scales::Wide));
        assert_eq!(said, usize::MAX);
    }
}
