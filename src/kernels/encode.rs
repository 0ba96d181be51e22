//! Weights to the types they are stored in, with vector instructions.

use super::dispatch::Kernels;
use super::isa::{Isa, Op};
use crate::error::Result;
use crate::tensor::{self, GgmlType, Row, TooLarge};

struct Encode<'a>(Row<'a>);

impl Op for Encode<'_> {
    type Output = std::result::Result<(), TooLarge>;
    #[inline(always)]
    fn call<I: Isa>(self, _: I) -> Self::Output {
        self.0.encode()
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
