//! How four bytes are multiplied with four bytes and summed up: what the levels of NEON differ in.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::fmt::Debug;

use super::super::isa::{Isa, Op};
use super::Neon;

/// A level of NEON. Its values prove that the processor has it.
pub trait Dot: Copy + Debug + Send + Sync + 'static {
    const NAME: &'static str;

    fn new() -> Option<Self>;
    /// Runs `op` compiled for this level.
    fn run<O: Op>(isa: Neon<Self>, op: O) -> O::Output
    where
        Neon<Self>: Isa;
    /// `acc[i] + sum of a[4 i + q] * b[4 i + q]` over q in 0..4, as long as no two neighbouring products sum up to more
    /// than 32767.
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;
}

/// `Dot::run` for a level with these features.
macro_rules! run_with {
    ($features:literal) => {
        #[inline(always)]
        fn run<O: Op>(isa: Neon<Self>, op: O) -> O::Output
        where
            Neon<Self>: Isa,
        {
            #[target_feature(enable = $features)]
            fn inner<I: Isa, O: Op>(isa: I, op: O) -> O::Output {
                op.call(isa)
            }
            // SAFETY: `isa` proves that the processor has these features
            unsafe { inner(isa, op) }
        }
    };
}

/// What every 64-bit ARM has (Cortex-A72 and the like).
#[derive(Clone, Copy, Debug)]
pub struct Plain(());

impl Dot for Plain {
    const NAME: &'static str = "neon";
    run_with!("neon");

    fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Plain(()))
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: `self` proves NEON
        unsafe {
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// With FEAT_DotProd (ARMv8.2: Cortex-A76, Neoverse N1, Apple A11 and later).
#[derive(Clone, Copy, Debug)]
pub struct DotProd(());

impl Dot for DotProd {
    const NAME: &'static str = "neon-dotprod";
    run_with!("neon,dotprod");

    fn new() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(DotProd(()))
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut sum = acc;
        // SAFETY: `self` proves the instruction (`vdotq_s32` is not stable yet), which touches registers only
        unsafe {
            asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// With FEAT_DotProd and FEAT_I8MM (ARMv8.6: Neoverse V1 and N2, Cortex-A510, Apple M2 and later).
#[derive(Clone, Copy, Debug)]
pub struct I8mm(DotProd);

impl Dot for I8mm {
    const NAME: &'static str = "neon-i8mm";
    run_with!("neon,dotprod,i8mm");

    fn new() -> Option<Self> {
        DotProd::new().filter(|_| is_aarch64_feature_detected!("i8mm")).map(I8mm)
    }
    #[inline(always)]
    fn dot(self, acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        self.0.dot(acc, a, b)
    }
}
