//! Weights to the types they are stored in and back, with vector instructions.

use super::dispatch::Kernels;
use super::isa::{Isa, LANES, Op};
use crate::error::Result;
use crate::tensor::{self, GgmlType, Row, Simd, TooLarge};

/// The vectors of an instruction set for the encoders.
#[derive(Clone, Copy)]
struct Vectors<I>(I);

macro_rules! forward {
    ($($name:ident($($arg:ident),+);)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: I::F32),+) -> I::F32 {
                self.0.$name($($arg),+)
            }
        )*
    };
}

impl<I: Isa> Simd for Vectors<I> {
    type V = I::F32;
    #[inline(always)]
    fn splat(self, v: f32) -> I::F32 {
        self.0.splat(v)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> I::F32 {
        self.0.load(from)
    }
    #[inline(always)]
    fn store(self, v: I::F32, to: &mut [f32; LANES]) {
        self.0.store(v, to);
    }
    #[inline(always)]
    fn sum(self, v: I::F32) -> f32 {
        self.0.reduce_add(v)
    }
    forward! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        max(a, b);
        min(a, b);
        div(a, b);
        round(a);
        zero_if_less(a, b, v);
        if_less(a, b, x, y);
    }
}

struct Encode<'a>(Row<'a>);

impl Op for Encode<'_> {
    type Output = std::result::Result<(), TooLarge>;
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) -> Self::Output {
        self.0.encode(Vectors(isa))
    }
}

struct Decode<'a> {
    dtype: GgmlType,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Op for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        tensor::decode(self.dtype, self.bytes, self.out);
    }
}

/// Sums of squares: of the first, and of the differences.
struct Squares<'a>(&'a [f32], &'a [f32]);

impl Op for Squares<'_> {
    type Output = (f64, f64);
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) -> (f64, f64) {
        // Short sums in f32, so that the result is good to f64's leading digits without its cost.
        const PART: usize = 1024;
        let (mut energy, mut error) = (0.0, 0.0);
        for (a, b) in self.0.chunks(PART).zip(self.1.chunks(PART)) {
            let (mut e, mut d) = (isa.splat(0.0), isa.splat(0.0));
            let (a, a_rest) = a.as_chunks::<LANES>();
            let (b, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (isa.load(a), isa.load(b));
                let difference = isa.sub(a, b);
                e = isa.fused(a, a, e);
                d = isa.fused(difference, difference, d);
            }
            energy += f64::from(isa.reduce_add(e));
            error += f64::from(isa.reduce_add(d));
            for (&a, &b) in a_rest.iter().zip(b_rest) {
                energy += f64::from(a) * f64::from(a);
                error += f64::from(a - b) * f64::from(a - b);
            }
        }
        (energy, error)
    }
}

impl Kernels {
    /// [`tensor::quantize_weighted`], which is the specification: the same bits, sooner. One row per call.
    ///
    /// # Errors
    /// As that function.
    pub fn quantize(&self, dtype: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
        tensor::quantize_with(dtype, x, importance, out, |row| self.run(Encode(row)))
    }

    /// [`tensor::dequantize`], which is the specification: the same bits, sooner.
    ///
    /// # Errors
    /// As that function.
    pub fn dequantize(&self, dtype: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        tensor::check_stored(dtype, bytes, out.len())?;
        self.run(Decode { dtype, bytes, out });
        Ok(())
    }

    /// The sum of the squares of `weights`, and of their differences from `back`, which is as long. The same on every
    /// instruction set.
    pub fn squares(&self, weights: &[f32], back: &[f32]) -> (f64, f64) {
        self.run(Squares(weights, back))
    }
}
