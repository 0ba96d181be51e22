//! RMSNorm, rotary positions, SiLU gate, softmax: f32, a row at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{self, Isa, LANES, Op};
use crate::memory::{try_collect, try_vec};
use crate::parallel::Exec;

/// Rows of `d` elements that are worth a task: less is done before another thread has woken up.
pub(super) fn rows_per_task(d: usize) -> usize {
    (1 << 14) / d.max(1) + 1
}

/// RMSNorm (Zhang and Sennrich 2019): `out = x / sqrt(mean(x^2) + eps) * weight` for every row of `x`, [n, d].
pub fn rms_norm(exec: &Exec, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let d = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(d), "rows of {d} elements");
    exec.run(|| {
        x.par_chunks(d).zip(out.par_chunks_mut(d)).with_min_len(rows_per_task(d)).for_each(|(x, out)| {
            let squares = exec.kernels.run(SumSquares(x));
            let scale = norm_scale(squares, d, eps);
            exec.kernels.run(Zip3 { a: x, b: weight, out, f: ScaleMul(scale) });
        });
    });
}

/// `gate = silu(gate) * up`, element by element; silu(x) = x / (1 + exp(-x)).
pub fn silu_mul(exec: &Exec, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    const CHUNK: usize = 1 << 14;
    exec.run(|| {
        gate.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK)).for_each(|(gate, up)| {
            exec.kernels.run(InPlace { a: gate, b: up, f: SiluMul });
        });
    });
}

/// Rows of activations that are quantized or rounded: as they lie in memory, or computed span by span meanwhile, so that
/// they are nowhere in f32. The bits are those of the function of that name on whole rows.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    Plain(&'a [f32]),
    /// [`rms_norm`] of `x`
    Normed {
        x: &'a [f32],
        weight: &'a [f32],
        eps: f32,
    },
    /// [`silu_mul`]
    Gated {
        gate: &'a [f32],
        up: &'a [f32],
    },
}

impl<'a> Rows<'a> {
    /// Elements of all rows.
    pub(super) fn len(&self) -> usize {
        match self {
            Rows::Plain(x) | Rows::Normed { x, .. } => x.len(),
            Rows::Gated { gate, up } => gate.len().min(up.len()),
        }
    }

    /// Some whole rows, by their elements.
    pub(super) fn part(&self, at: Range<usize>) -> Rows<'a> {
        match *self {
            Rows::Plain(x) => Rows::Plain(&x[at]),
            Rows::Normed { x, weight, eps } => Rows::Normed { x: &x[at], weight, eps },
            Rows::Gated { gate, up } => Rows::Gated { gate: &gate[at.clone()], up: &up[at] },
        }
    }

    /// What the norm scales each of up to 16 rows of `k` elements with.
    #[inline(always)]
    pub(super) fn scales<I: Isa>(&self, isa: I, k: usize) -> [f32; LANES] {
        let mut scales = [1.0; LANES];
        if let Rows::Normed { x, eps, .. } = *self {
            for (scale, x) in scales.iter_mut().zip(x.chunks_exact(k)) {
                *scale = norm_scale(SumSquares(x).call(isa), k, eps);
            }
        }
        scales
    }

    /// The elements `columns` of row `row`, in place or in `to`.
    #[inline(always)]
    pub(super) fn span<'b, I: Isa>(
        &self,
        isa: I,
        k: usize,
        row: usize,
        columns: Range<usize>,
        scale: f32,
        to: &'b mut [f32],
    ) -> &'b [f32]
    where
        'a: 'b,
    {
        let at = row * k + columns.start..row * k + columns.end;
        let out = &mut to[..columns.len()];
        match *self {
            Rows::Plain(x) => return &x[at],
            Rows::Normed { x, weight, .. } => {
                Zip3 { a: &x[at], b: &weight[columns], out: &mut *out, f: ScaleMul(scale) }.call(isa);
            }
            Rows::Gated { gate, up } => {
                Zip3 { a: &gate[at.clone()], b: &up[at], out: &mut *out, f: SiluMul }.call(isa);
            }
        }
        out
    }
}

/// `1 / sqrt(mean(x^2) + eps)` of a row of `d` elements.
#[inline(always)]
fn norm_scale(squares: f32, d: usize, eps: f32) -> f32 {
    1.0 / (squares / d as f32 + eps).sqrt()
}

/// Which elements of a head of q and k are rotated with each other. Whoever orders the rows of the two matrices
/// chooses it; it does not change what is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pairs {
    /// Element i and i + head_dim / 2 ("NeoX"): LLaDA's checkpoints.
    #[default]
    Halves,
    /// Elements 2 i and 2 i + 1 (ggml's `GGML_ROPE_TYPE_NORMAL`): what llama.cpp's converter makes of them.
    Neighbours,
}

/// The largest head that [`Pairs::Neighbours`] takes.
pub const MAX_NEIGHBOURS_HEAD: usize = 1024;

/// Angles of rotary position embedding (Su et al. 2021): cosine and sine of `position * theta^(-2 i / head_dim)`,
/// computed in f32, [positions][head_dim / 2].
pub struct Rope {
    half: usize,
    pairs: Pairs,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    pub fn new(positions: usize, head_dim: usize, theta: f32, pairs: Pairs) -> crate::error::Result<Self> {
        assert!(pairs == Pairs::Halves || head_dim <= MAX_NEIGHBOURS_HEAD, "a head of {head_dim} elements");
        let half = head_dim / 2;
        const WHAT: &str = "rotary angles";
        let mut cos = try_vec(positions.saturating_mul(half), WHAT)?;
        let mut sin = try_vec(positions.saturating_mul(half), WHAT)?;
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32);
        let frequencies: Vec<f32> = try_collect((0..half).map(frequency), WHAT)?;
        for p in 0..positions {
            for (i, f) in frequencies.iter().enumerate() {
                let (s, c) = (p as f32 * f).sin_cos();
                cos[p * half + i] = c;
                sin[p * half + i] = s;
            }
        }
        Ok(Rope { half, pairs, cos, sin })
    }

    /// Cosines and sines, [positions, half a head] each.
    pub fn angles(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    pub fn pairs(&self) -> Pairs {
        self.pairs
    }

    /// Rotates every head of every row of `x`, [positions.len(), heads * head_dim], in place. Afterwards element i of
    /// a head and i + head_dim / 2 are a pair, whatever the order was before: so attention adds in one order, and a
    /// model's numbers do not depend on how its file orders rows.
    pub fn apply(&self, exec: &Exec, x: &mut [f32], positions: &[u32]) {
        if positions.is_empty() {
            return;
        }
        let d = x.len() / positions.len();
        exec.run(|| {
            x.par_chunks_mut(d).zip(positions).with_min_len(rows_per_task(d)).for_each(|(row, &p)| {
                let at = p as usize * self.half;
                let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
                for head in row.chunks_exact_mut(2 * self.half) {
                    if self.pairs == Pairs::Neighbours {
                        split_pairs(head);
                    }
                    let (a, b) = head.split_at_mut(self.half);
                    exec.kernels.run(Rotate { a, b, cos, sin });
                }
            });
        });
    }
}

/// `(a, b) = (a cos - b sin, b cos + a sin)`, element by element; rounded the same on every instruction set.
struct Rotate<'a> {
    a: &'a mut [f32],
    b: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Op for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let (a, a_rest) = self.a.as_chunks_mut::<LANES>();
        let (b, b_rest) = self.b.as_chunks_mut::<LANES>();
        let (cos, cos_rest) = self.cos.as_chunks::<LANES>();
        let (sin, sin_rest) = self.sin.as_chunks::<LANES>();
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            let (x, y, c, s) = (isa.load(a), isa.load(b), isa.load(c), isa.load(s));
            isa.store(isa.sub(isa.mul(x, c), isa.mul(y, s)), a);
            isa.store(isa.add(isa.mul(y, c), isa.mul(x, s)), b);
        }
        for (((a, b), c), s) in a_rest.iter_mut().zip(b_rest).zip(cos_rest).zip(sin_rest) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}

/// The first of all pairs of neighbours, then the second of all. Up to [`MAX_NEIGHBOURS_HEAD`] elements.
fn split_pairs(head: &mut [f32]) {
    let mut seconds = [0.0; MAX_NEIGHBOURS_HEAD / 2];
    let half = head.len() / 2;
    for i in 0..half {
        seconds[i] = head[2 * i + 1];
        head[i] = head[2 * i];
    }
    head[half..].copy_from_slice(&seconds[..half]);
}

/// `x = exp(x * scale - max)/sum` for every row of `x`, [n, d].
pub fn softmax_rows(exec: &Exec, x: &mut [f32], d: usize, scale: f32) {
    exec.run(|| {
        let rows = x.par_chunks_mut(d).with_min_len(rows_per_task(4 * d));
        rows.for_each(|row| exec.kernels.run(Softmax { row, scale }))
    });
}

struct SumSquares<'a>(&'a [f32]);

impl Op for SumSquares<'_> {
    type Output = f32;
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) -> f32 {
        let (x, rest) = self.0.as_chunks::<LANES>();
        let mut acc = isa.splat(0.0);
        for x in x {
            let v = isa.load(x);
            acc = isa.mul_add(v, v, acc);
        }
        isa.reduce_add(acc) + rest.iter().map(|v| v * v).sum::<f32>()
    }
}

/// A function of two vectors, lane by lane.
trait Lanes2: Copy {
    fn apply<I: Isa>(self, isa: I, a: I::F32, b: I::F32) -> I::F32;
}

#[derive(Clone, Copy)]
struct ScaleMul(f32);
impl Lanes2 for ScaleMul {
    #[inline(always)]
    fn apply<I: Isa>(self, isa: I, a: I::F32, b: I::F32) -> I::F32 {
        isa.mul(isa.mul(a, isa.splat(self.0)), b)
    }
}

#[derive(Clone, Copy)]
struct SiluMul;
impl Lanes2 for SiluMul {
    #[inline(always)]
    fn apply<I: Isa>(self, isa: I, a: I::F32, b: I::F32) -> I::F32 {
        let e = isa::exp(isa, isa.sub(isa.splat(0.0), a));
        isa.mul(isa.div(a, isa.add(isa.splat(1.0), e)), b)
    }
}

struct Zip3<'a, F> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
    f: F,
}

impl<F: Lanes2> Op for Zip3<'_, F> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        self.out.copy_from_slice(self.a);
        InPlace { a: self.out, b: self.b, f: self.f }.call(isa);
    }
}

/// `a = f(a, b)`; the last lanes of a slice that is no multiple of 16 go through a padded vector.
struct InPlace<'a, F> {
    a: &'a mut [f32],
    b: &'a [f32],
    f: F,
}

impl<F: Lanes2> Op for InPlace<'_, F> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let (a, a_rest) = self.a.as_chunks_mut::<LANES>();
        let (b, b_rest) = self.b.as_chunks::<LANES>();
        for (a, b) in a.iter_mut().zip(b) {
            isa.store(self.f.apply(isa, isa.load(a), isa.load(b)), a);
        }
        if !a_rest.is_empty() {
            let (mut x, mut y) = ([0.0; LANES], [0.0; LANES]);
            x[..a_rest.len()].copy_from_slice(a_rest);
            y[..a_rest.len()].copy_from_slice(b_rest);
            isa.store(self.f.apply(isa, isa.load(&x), isa.load(&y)), &mut x);
            a_rest.copy_from_slice(&x[..a_rest.len()]);
        }
    }
}

struct Softmax<'a> {
    row: &'a mut [f32],
    scale: f32,
}

impl Op for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let mut peak = f32::NEG_INFINITY;
        for v in self.row.iter_mut() {
            *v *= self.scale;
            peak = peak.max(*v);
        }
        let (chunks, rest) = self.row.as_chunks_mut::<LANES>();
        let (m, mut sum) = (isa.splat(peak), isa.splat(0.0));
        for c in chunks.iter_mut() {
            let e = isa::exp(isa, isa.sub(isa.load(c), m));
            sum = isa.add(sum, e);
            isa.store(e, c);
        }
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let e = isa::exp(isa, isa.sub(isa.load(&last), m));
        isa.store(e, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
        let inverse = 1.0 / isa.reduce_add(isa.add(sum, e));
        for v in self.row.iter_mut() {
            *v *= inverse;
        }
    }
}
