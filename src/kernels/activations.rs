//! Activations to int8 and to bfloat16, packed as the products read them.
//!
//! A *cell* is 4 bytes of a row: four int8 or two bfloat16. A *step* is 16 cells, a *block* 16 rows:
//!
//! ```text
//! cells  [block][step][16 cells][16 rows]     a vector holds the same cell of 16 rows
//! scale  [block][group][16 rows] f32          int8: group = 32 or 256 elements with one scale
//! sums   [block][16 elements][16 rows] f32    int8, unless scales are wide
//! ```
//!
//! The last block is filled up with rows of zeros, the last step with cells of zeros.

use rayon::prelude::*;

use super::elementwise::Rows;
use super::isa::{CELLS, Isa, LANES, Op};
use crate::error::Result;
use crate::memory::Aligned;
use crate::parallel::Exec;

/// int8 elements of a step.
pub(super) const STEP: usize = CELLS;
/// Bytes of a step of a block.
pub(super) const STEP_BYTES: usize = LANES * CELLS;

/// How many elements share a scale, in weights and activations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scales {
    /// Those of the weights' blocks: activations have a scale every 32 elements.
    #[default]
    Blocks,
    /// Those of the weights' blocks; activations have one for 256 elements. Sums over the scales of blocks are then
    /// multiplied once for 256 elements, and integers leave with one operation.
    Mixed,
    /// One for 256 elements of both: weights are quantized to int8 again on the way.
    Wide,
}

impl Scales {
    /// Elements of activations that share a scale.
    pub const fn group(self) -> usize {
        match self {
            Scales::Blocks => 32,
            Scales::Mixed | Scales::Wide => WIDE,
        }
    }
}

/// Elements that share a scale where scales are wide.
pub(super) const WIDE: usize = 256;

/// `n` rows of `k` activations in int8: `x = scale * q`. Instruction sets whose dot product takes an unsigned operand
/// get `q + 128` ([`Isa::BIASED`]). Sums of every 16 elements serve the types with a minimum.
#[derive(Default)]
pub struct Int8Rows {
    n: usize,
    k: usize,
    scales: Scales,
    cells: Aligned<u8>,
    scale: Aligned<f32>,
    /// sum of q over 16 elements
    sums: Aligned<f32>,
}

impl Int8Rows {
    /// Room for `n` rows of up to `k` elements.
    pub fn with_capacity(n: usize, k: usize) -> Result<Self> {
        let mut rows = Int8Rows::default();
        rows.reserve(n, k)?;
        Ok(rows)
    }

    fn reserve(&mut self, n: usize, k: usize) -> Result<()> {
        let what = "int8 activations";
        let rows = n.div_ceil(LANES).saturating_mul(LANES);
        self.scale.try_grow_to(rows.saturating_mul(k.div_ceil(32)), what)?;
        self.sums.try_grow_to(rows.saturating_mul(k.div_ceil(LANES)), what)?;
        self.cells.try_grow_to(rows.saturating_mul(k.next_multiple_of(STEP)), what)
    }

    pub fn n(&self) -> usize {
        self.n
    }
    pub fn k(&self) -> usize {
        self.k
    }
    /// What the last [`Int8Rows::quantize`] was asked for.
    pub fn scales(&self) -> Scales {
        self.scales
    }

    /// Bytes that [`Int8Rows::with_capacity`] takes.
    pub fn bytes(n: usize, k: usize) -> usize {
        let row = k.next_multiple_of(STEP) + k.div_ceil(32) * 4 + k.div_ceil(LANES) * 4;
        n.div_ceil(LANES).saturating_mul(LANES).saturating_mul(row)
    }

    /// Quantizes `x`, [n, k]; `k` is a multiple of 32. Grows where the capacity given at first is too small.
    ///
    /// # Errors
    /// `OutOfMemory` where it cannot grow.
    pub fn quantize(&mut self, exec: &Exec, x: &[f32], k: usize, scales: Scales) -> Result<()> {
        self.quantize_rows(exec, Rows::Plain(x), k, scales)
    }

    /// [`Int8Rows::quantize`] of rows that may be computed meanwhile.
    ///
    /// # Errors
    /// As that function.
    pub fn quantize_rows(&mut self, exec: &Exec, x: Rows, k: usize, scales: Scales) -> Result<()> {
        assert!(k.is_multiple_of(32) && x.len().is_multiple_of(k.max(1)), "rows of whole groups");
        let n = x.len() / k.max(1);
        self.reserve(n, k)?;
        (self.n, self.k, self.scales) = (n, k, scales);
        if n == 0 {
            return Ok(());
        }
        let (groups, sums) = (k.div_ceil(scales.group()) * LANES, k / LANES * LANES);
        let cells = self.cells.par_chunks_mut(k.div_ceil(STEP) * STEP_BYTES);
        let biased = exec.kernels.biased(scales);
        let blocks = (blocks(x, k), cells, self.scale.par_chunks_mut(groups), self.sums.par_chunks_mut(sums));
        exec.run(|| {
            blocks.into_par_iter().with_min_len(blocks_per_task(k)).for_each(|(x, cells, scale, sums)| {
                exec.kernels.run(QuantizeBlock { x, k, scales, biased, cells, scale, sums })
            })
        });
        Ok(())
    }

    /// The cells of a block of rows, from a step on.
    pub(super) fn cells(&self, block: usize, step: usize) -> *const u8 {
        self.cells[(block * self.k.div_ceil(STEP) + step) * STEP_BYTES..].as_ptr()
    }
    /// Bytes from block to block of [`Int8Rows::cells`].
    pub(super) fn block_bytes(&self) -> usize {
        self.k.div_ceil(STEP) * STEP_BYTES
    }
    /// The scales of all blocks, and how many a block has.
    pub(super) fn scale(&self) -> (&[f32], usize) {
        (&self.scale, self.k.div_ceil(self.scales.group()) * LANES)
    }
    /// The sums of all blocks, and how many a block has.
    pub(super) fn sums(&self) -> (&[f32], usize) {
        (&self.sums, self.k / LANES * LANES)
    }
}

/// Blocks of rows that are worth a task of their own.
fn blocks_per_task(k: usize) -> usize {
    super::elementwise::rows_per_task(k).div_ceil(LANES)
}

/// Blocks of up to 16 rows of `k` elements.
fn blocks(x: Rows<'_>, k: usize) -> impl IndexedParallelIterator<Item = Rows<'_>> {
    let block = LANES * k;
    (0..x.len().div_ceil(block)).into_par_iter().map(move |i| x.part(i * block..x.len().min((i + 1) * block)))
}

/// Up to 16 rows of `k` elements.
struct QuantizeBlock<'a> {
    x: Rows<'a>,
    k: usize,
    scales: Scales,
    biased: bool,
    cells: &'a mut [u8],
    scale: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Op for QuantizeBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(mut self, isa: I) {
        let (k, group) = (self.k, self.scales.group());
        let sign = if self.biased { 0x8080_8080 } else { 0 };
        // some groups of 16 rows, transposed a step at a time
        let mut rows = [[[0u32; LANES]; LANES]; WIDE / STEP];
        let mut columns = [[0u32; LANES]; LANES];
        let (mut computed, norms, n) = ([0.0; WIDE], self.x.scales(isa, k), self.x.len() / k);
        let span = group.max(STEP);
        for first in (0..k).step_by(span) {
            let len = span.min(k - first);
            for (t, norm) in norms.into_iter().enumerate() {
                if t >= n {
                    rows.iter_mut().for_each(|step| step[t] = [0; LANES]);
                    continue;
                }
                let x = self.x.span(isa, k, t, first..first + len, norm, &mut computed);
                for (g, x) in x.chunks(group).enumerate() {
                    let at = first + g * group;
                    self.scale[at / group * LANES + t] = quantize_group(isa, x, &mut rows, t, g * group);
                }
                if self.scales != Scales::Wide {
                    self.sum(&rows, t, first, len);
                }
            }
            for (s, rows) in rows.iter().enumerate().take(len.div_ceil(STEP)) {
                isa.transpose(rows, &mut columns);
                let to = &mut self.cells[(first / STEP + s) * STEP_BYTES..][..STEP_BYTES];
                for (to, v) in to.as_chunks_mut::<4>().0.iter_mut().zip(columns.as_flattened()) {
                    *to = (v ^ sign).to_ne_bytes();
                }
            }
        }
    }
}

impl QuantizeBlock<'_> {
    /// Sums of 16 elements of row `t`.
    #[inline(always)]
    fn sum(&mut self, rows: &[[[u32; LANES]; LANES]], t: usize, first: usize, len: usize) {
        for part in 0..len / LANES {
            let cells = &rows[part * 4 / LANES][t][part * 4 % LANES..][..4];
            let mut sum = 0;
            for v in cells.iter().flat_map(|cell| cell.to_ne_bytes()) {
                sum += i32::from(v as i8);
            }
            self.sums[(first / LANES + part) * LANES + t] = sum as f32;
        }
    }
}

/// A group of row `t` to int8, from element `at` of the steps on; returns its scale.
#[inline(always)]
fn quantize_group<I: Isa>(isa: I, x: &[f32], rows: &mut [[[u32; LANES]; LANES]], t: usize, at: usize) -> f32 {
    let x = x.as_chunks::<LANES>().0;
    let mut peak = isa.splat(0.0);
    for x in x {
        peak = isa.peak(peak, isa.load(x));
    }
    let d = isa.reduce_peak(peak) / 127.0;
    // a group whose scale is subnormal, infinite or NaN has zeros; the latter two stay what they are, in the scale
    let (is_normal, inverse) = (d.is_normal(), isa.splat(1.0 / d));
    let mut q = [0i8; LANES];
    for (i, x) in x.iter().enumerate() {
        if is_normal {
            isa.store_i8(isa.round(isa.mul(isa.load(x), inverse)), &mut q);
        }
        let cell = at / 4 + i * 4;
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut rows[cell / LANES][t][cell % LANES..][..4]);
        to.copy_from_slice(bytemuck::cast_slice(&q));
    }
    if is_normal || !d.is_finite() { d } else { 0.0 }
}

/// `n` rows of `k` activations in bfloat16, in pairs; an odd row ends with a zero.
#[derive(Default)]
pub struct Bf16Rows {
    n: usize,
    k: usize,
    cells: Aligned<u32>,
}

/// The bits of the nearest bfloat16, ties to even (NaN stays NaN).
#[inline(always)]
pub(super) fn bf16_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    if v.is_nan() { (bits >> 16) | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// bfloat16 elements of a step.
pub(super) const BF16_STEP: usize = 2 * LANES;

impl Bf16Rows {
    /// Room for `n` rows of `k` elements.
    pub fn with_capacity(n: usize, k: usize) -> Result<Self> {
        let mut rows = Bf16Rows::default();
        rows.cells.try_grow_to(Self::bytes(n, k) / 4, "bfloat16 activations")?;
        Ok(rows)
    }

    pub fn n(&self) -> usize {
        self.n
    }
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that it has room for.
    pub fn capacity(&self) -> usize {
        self.cells.len() * 4
    }

    /// Bytes that [`Bf16Rows::with_capacity`] takes.
    pub fn bytes(n: usize, k: usize) -> usize {
        n.div_ceil(LANES).saturating_mul(LANES).saturating_mul(k.next_multiple_of(BF16_STEP) * 2)
    }

    /// Rounds `x`, [n, k]. Grows where the capacity given at first is too small.
    ///
    /// # Errors
    /// `OutOfMemory` where it cannot grow.
    pub fn round(&mut self, exec: &Exec, x: &[f32], k: usize) -> Result<()> {
        self.round_rows(exec, Rows::Plain(x), k)
    }

    /// [`Bf16Rows::round`] of rows that may be computed meanwhile.
    ///
    /// # Errors
    /// As that function.
    pub fn round_rows(&mut self, exec: &Exec, x: Rows, k: usize) -> Result<()> {
        assert!(x.len().is_multiple_of(k.max(1)), "whole rows");
        let n = x.len() / k.max(1);
        self.cells.try_grow_to(Self::bytes(n, k) / 4, "bfloat16 activations")?;
        (self.n, self.k) = (n, k);
        if n == 0 {
            return Ok(());
        }
        let blocks = blocks(x, k).zip(self.cells.par_chunks_mut(k.div_ceil(BF16_STEP) * STEP_BYTES / 4));
        exec.run(|| {
            blocks.with_min_len(blocks_per_task(k)).for_each(|(x, cells)| exec.kernels.run(RoundBlock { x, k, cells }))
        });
        Ok(())
    }

    /// The cells of a block of rows, from a step on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // no other has products in bfloat16 here
    pub(super) fn cells(&self, block: usize, step: usize) -> *const u8 {
        self.cells[block * self.block_bytes() / 4 + step * STEP_BYTES / 4..].as_ptr().cast()
    }
    /// Bytes from block to block of [`Bf16Rows::cells`].
    pub(super) fn block_bytes(&self) -> usize {
        self.k.div_ceil(BF16_STEP) * STEP_BYTES
    }
}

/// Up to 16 rows of `k` elements.
struct RoundBlock<'a> {
    x: Rows<'a>,
    k: usize,
    cells: &'a mut [u32],
}

impl Op for RoundBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let RoundBlock { x, k, cells } = self;
        let mut rows = [[0u32; LANES]; LANES];
        let mut columns = rows;
        let (mut computed, norms, n) = ([0.0; BF16_STEP], x.scales(isa, k), x.len() / k);
        for (first, to) in (0..k).step_by(BF16_STEP).zip(cells.as_chunks_mut::<{ LANES * LANES }>().0) {
            let len = BF16_STEP.min(k - first);
            for ((t, row), norm) in rows.iter_mut().enumerate().zip(norms) {
                *row = [0; LANES];
                if t >= n {
                    continue;
                }
                let (pairs, last) = x.span(isa, k, t, first..first + len, norm, &mut computed).as_chunks::<2>();
                for (to, [a, b]) in row.iter_mut().zip(pairs) {
                    *to = bf16_bits(*a) | bf16_bits(*b) << 16;
                }
                if let [v] = last {
                    row[pairs.len()] = bf16_bits(*v);
                }
            }
            isa.transpose(&rows, &mut columns);
            to.copy_from_slice(columns.as_flattened());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::elementwise::{rms_norm, silu_mul};
    use super::super::tests::Random;
    use super::*;
    use crate::kernels::Kernels;
    use crate::parallel::Threads;

    /// Rows to compute, and what they are.
    fn cases<'a>(exec: &Exec, data: &'a [Vec<f32>; 3], k: usize) -> [(Rows<'a>, Vec<f32>); 2] {
        let [x, up, weight] = data;
        let (mut normed, mut gated) = (vec![0.0; x.len()], x.clone());
        rms_norm(exec, x, &weight[..k], 1e-5, &mut normed);
        silu_mul(exec, &mut gated, up);
        let weight = &weight[..k];
        [(Rows::Normed { x, weight, eps: 1e-5 }, normed), (Rows::Gated { gate: x, up }, gated)]
    }

    #[test]
    fn rows_that_are_computed_on_the_way_are_quantized_to_the_bits_of_whole_rows() {
        let mut rng = Random(31);
        for (n, k) in [(1, 32), (17, 288), (35, 512), (16, 64), (48, 1056)] {
            let data = [rng.floats(n * k), rng.floats(n * k), rng.floats(k)];
            for (kernels, count) in Kernels::available().iter().flat_map(|k| [(k, 1), (k, 3)]) {
                let threads = Threads::new(count).unwrap();
                let exec = Exec::new(&threads, kernels, None);
                for (rows, whole) in cases(&exec, &data, k) {
                    for scales in [Scales::Blocks, Scales::Mixed, Scales::Wide] {
                        let (mut fused, mut plain) = (Int8Rows::default(), Int8Rows::default());
                        fused.quantize_rows(&exec, rows, k, scales).unwrap();
                        plain.quantize(&exec, &whole, k, scales).unwrap();
                        let what = format!("{} {n} {k} {scales:?}", kernels.name());
                        assert_eq!((fused.n, fused.k, fused.scales), (n, k, scales));
                        assert!(fused.cells[..] == plain.cells[..], "{what}: elements");
                        assert!(fused.scale[..] == plain.scale[..], "{what}: scales");
                        assert!(fused.sums[..] == plain.sums[..], "{what}: sums");
                        assert!(plain.cells.iter().any(|q| *q != 0 && *q != 128));
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_computed_on_the_way_are_rounded_to_the_bits_of_whole_rows() {
        let mut rng = Random(32);
        for (n, k) in [(1, 1), (17, 67), (35, 513), (16, 64)] {
            let data = [rng.floats(n * k), rng.floats(n * k), rng.floats(k)];
            for (kernels, count) in Kernels::available().iter().flat_map(|k| [(k, 1), (k, 3)]) {
                let threads = Threads::new(count).unwrap();
                let exec = Exec::new(&threads, kernels, None);
                for (rows, whole) in cases(&exec, &data, k) {
                    let (mut fused, mut plain) = (Bf16Rows::default(), Bf16Rows::default());
                    fused.round_rows(&exec, rows, k).unwrap();
                    plain.round(&exec, &whole, k).unwrap();
                    assert_eq!((fused.n, fused.k), (n, k));
                    assert!(fused.cells[..] == plain.cells[..], "{} {n} {k}", kernels.name());
                    assert!(plain.cells.iter().any(|cell| *cell != 0));
                }
            }
        }
    }
}
