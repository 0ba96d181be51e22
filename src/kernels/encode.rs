//! Weights to the types they are stored in, with vector instructions.

use super::dispatch::Kernels;
use super::isa::{Isa, LANES, Op};
use crate::error::Result;
use crate::tensor::{self, GgmlType, Row, Simd, TooLarge};

const _: () = assert!(LANES == tensor::LANES);

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
        round(a);
        zero_if_less(a, b, v);
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

impl Kernels {
    /// [`tensor::quantize_weighted`], which is the specification: the same bits, sooner. One row per call.
    ///
    /// # Errors
    /// As that function.
    pub fn quantize(&self, dtype: GgmlType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
        tensor::quantize_with(dtype, x, importance, out, |row| self.run(Encode(row)))
    }
}
