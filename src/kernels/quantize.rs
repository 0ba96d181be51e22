//! Activations to int8 and to bfloat16.

use rayon::prelude::*;

use super::elementwise::rows_per_task;
use super::isa::{Isa, LANES, Op};
use crate::error::Result;
use crate::memory::{try_resize, try_vec};
use crate::parallel::Exec;

/// Elements that share a scale.
pub const GROUP: usize = 32;

/// `n` rows of `k` activations in int8 with a scale every 32 elements: `x = scale * (q - 128)`.
/// The bytes are stored with 128 added because the dot instructions want one unsigned operand; sums of every 16
/// elements serve the types with a minimum (and 16-element groups).
#[derive(Default)]
pub struct Int8Rows {
    n: usize,
    k: usize,
    q: Vec<u8>,
    scale: Vec<f32>,
    /// sum of q - 128 over 16 elements
    sums: Vec<f32>,
}

impl Int8Rows {
    /// Room for `n` rows of up to `k` elements.
    pub fn with_capacity(n: usize, k: usize) -> Result<Self> {
        let mut rows = Int8Rows::default();
        rows.reserve(n, k)?;
        Ok(rows)
    }

    fn reserve(&mut self, n: usize, k: usize) -> Result<()> {
        let (what, len) = ("int8 activations", n.saturating_mul(k));
        if self.q.len() < len {
            try_resize(&mut self.q, len, what)?;
            try_resize(&mut self.scale, len / GROUP, what)?;
            try_resize(&mut self.sums, len / LANES, what)?;
        }
        Ok(())
    }

    pub fn n(&self) -> usize {
        self.n
    }
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that [`Int8Rows::with_capacity`] takes.
    pub fn bytes(n: usize, k: usize) -> usize {
        n.saturating_mul(k + k / GROUP * 4 + k / LANES * 4)
    }

    /// Quantizes `x`, [n, k]; `k` is a multiple of 32. Grows where the capacity given at first is too small.
    ///
    /// # Errors
    /// `OutOfMemory` where it cannot grow.
    pub fn quantize(&mut self, exec: &Exec, x: &[f32], k: usize) -> Result<()> {
        assert!(k.is_multiple_of(GROUP) && x.len().is_multiple_of(k), "rows of whole groups");
        let n = x.len() / k;
        self.reserve(n, k)?;
        (self.n, self.k) = (n, k);
        let q = self.q[..n * k].par_chunks_mut(k);
        let scale = self.scale[..n * k / GROUP].par_chunks_mut(k / GROUP);
        let sums = self.sums[..n * k / LANES].par_chunks_mut(k / LANES);
        exec.run(|| {
            (x.par_chunks(k), q, scale, sums)
                .into_par_iter()
                .with_min_len(rows_per_task(k))
                .for_each(|(x, q, scale, sums)| exec.kernels.run(QuantizeRow { x, q, scale, sums }))
        });
        Ok(())
    }

    /// # Safety
    /// `row < n`, `k + 4 <= self.k`.
    #[inline(always)]
    pub(super) unsafe fn quad(&self, row: usize, k: usize) -> [u8; 4] {
        // SAFETY: the caller's promise
        unsafe { *self.q.as_ptr().add(row * self.k + k).cast() }
    }

    /// # Safety
    /// `row < n`, `k < self.k`.
    #[inline(always)]
    pub(super) unsafe fn scale_at(&self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise
        unsafe { *self.scale.get_unchecked((row * self.k + k) / GROUP) }
    }

    /// Sum of the activations of the group (16 or 32 elements) that starts at `k`.
    ///
    /// # Safety
    /// `row < n`, `k + group <= self.k`, `k` a multiple of `group`.
    #[inline(always)]
    pub(super) unsafe fn sum_at(&self, row: usize, k: usize, group: usize) -> f32 {
        let at = (row * self.k + k) / LANES;
        // SAFETY: the caller's promise
        unsafe {
            let sum =
                *self.sums.get_unchecked(at) + if group == GROUP { *self.sums.get_unchecked(at + 1) } else { 0.0 };
            sum * self.scale_at(row, k)
        }
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    q: &'a mut [u8],
    scale: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Op for QuantizeRow<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let x = self.x.as_chunks::<LANES>().0.as_chunks::<2>().0;
        let q = self.q.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0;
        let sums = self.sums.as_chunks_mut::<2>().0;
        for (((x, q), scale), sums) in x.iter().zip(q).zip(self.scale).zip(sums) {
            let v = [isa.load(&x[0]), isa.load(&x[1])];
            let peak = isa.reduce_max(isa.max(isa.abs(v[0]), isa.abs(v[1])));
            // a group whose scale would be subnormal, infinite or NaN counts as zeros (or as its NaN, in the scale)
            let d = peak / 127.0;
            let inverse = if d.is_normal() { 1.0 / d } else { 0.0 };
            *scale = if d.is_normal() || !d.is_finite() { d } else { 0.0 };
            let inverse = isa.splat(if inverse.is_finite() { inverse } else { 0.0 });
            for half in 0..2 {
                let r = isa.round(isa.mul(v[half], inverse));
                isa.store_biased(r, &mut q[half]);
                sums[half] = isa.reduce_add(r);
            }
        }
    }
}

/// `n` rows of `k` activations in bfloat16, in pairs; an odd row ends with a zero.
#[derive(Default)]
pub struct Bf16Rows {
    n: usize,
    k: usize,
    pairs: Vec<u32>,
}

/// The bits of the nearest bfloat16, ties to even (NaN stays NaN).
#[inline(always)]
pub(super) fn bf16_bits(v: f32) -> u32 {
    let bits = v.to_bits();
    if v.is_nan() { (bits >> 16) | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

impl Bf16Rows {
    /// Room for `n` rows of `k` elements.
    pub fn with_capacity(n: usize, k: usize) -> Result<Self> {
        Ok(Bf16Rows { n: 0, k: 0, pairs: try_vec(n * k.div_ceil(2), "bfloat16 activations")? })
    }

    pub fn n(&self) -> usize {
        self.n
    }
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that [`Bf16Rows::with_capacity`] takes.
    pub fn bytes(n: usize, k: usize) -> usize {
        n.saturating_mul(k.div_ceil(2) * 4)
    }

    /// Rounds `x`, [n, k]. Grows where the capacity given at first is too small.
    ///
    /// # Errors
    /// `OutOfMemory` where it cannot grow.
    pub fn round(&mut self, exec: &Exec, x: &[f32], k: usize) -> Result<()> {
        assert!(x.len().is_multiple_of(k), "whole rows");
        let (n, stride) = (x.len() / k, k.div_ceil(2));
        if self.pairs.len() < n * stride {
            try_resize(&mut self.pairs, n * stride, "bfloat16 activations")?;
        }
        (self.n, self.k) = (n, k);
        let rows = self.pairs[..self.n * stride].par_chunks_mut(stride).zip(x.par_chunks(k));
        exec.run(|| rows.with_min_len(rows_per_task(k)).for_each(|(to, x)| exec.kernels.run(RoundRow { x, to })));
        Ok(())
    }

    /// Pairs in a row.
    pub(super) fn stride(&self) -> usize {
        self.k.div_ceil(2)
    }

    /// All rows, from element `k` (even) of the first on.
    pub(super) fn pairs(&self, k: usize) -> &[u32] {
        &self.pairs[k / 2..self.n * self.stride()]
    }
}

struct RoundRow<'a> {
    x: &'a [f32],
    to: &'a mut [u32],
}

impl Op for RoundRow<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        let (pairs, last) = self.x.as_chunks::<2>();
        for (to, [a, b]) in self.to.iter_mut().zip(pairs) {
            *to = bf16_bits(*a) | bf16_bits(*b) << 16;
        }
        if let [v] = last {
            self.to[pairs.len()] = bf16_bits(*v);
        }
    }
}
