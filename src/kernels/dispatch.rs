//! Which instruction set runs: the best that the processor has, looked at once, or a lower one by name.

use std::sync::OnceLock;

use super::isa::{Isa, LANES, Op};
use super::portable::Portable;
use super::product::{Panel, Scratch};
use super::quantize::Bf16Rows;
use crate::error::{Error, Result};

/// The kernels of one instruction set. All give the same results up to the rounding of fused multiply-adds.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    #[cfg(target_arch = "x86_64")]
    bf16: Option<super::avx512::Avx512Bf16>,
}

#[derive(Clone, Copy, Debug)]
enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Plain),
    #[cfg(target_arch = "aarch64")]
    NeonDotProd(super::neon::DotProd),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(super::neon::I8mm),
}

#[cfg(target_arch = "x86_64")]
struct Bf16Panel<'a> {
    isa: super::avx512::Avx512Bf16,
    panel: Panel<'a>,
    x: &'a Bf16Rows,
    scratch: &'a mut Scratch,
}

#[cfg(target_arch = "x86_64")]
impl Op for Bf16Panel<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        // SAFETY: the panel's own promise: see `Panel::bf16`
        self.panel.bf16(self.x, I::PANEL * LANES, self.scratch, |block| unsafe { self.isa.columns(block) });
    }
}

/// `$body` with `$isa` bound to the token of the level.
macro_rules! with_isa {
    ($level:expr, $isa:ident => $body:expr) => {
        match $level {
            Level::Portable($isa) => $body,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2($isa) => $body,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512($isa) => $body,
            #[cfg(target_arch = "aarch64")]
            Level::Neon($isa) => $body,
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotProd($isa) => $body,
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm($isa) => $body,
        }
    };
}

fn name_of<I: Isa>(_: I) -> &'static str {
    I::NAME
}
fn panel_of<I: Isa>(_: I) -> usize {
    I::PANEL * LANES
}

impl Kernels {
    /// All that this processor can run, the slowest first.
    pub fn available() -> &'static [Kernels] {
        static ALL: OnceLock<Vec<Kernels>> = OnceLock::new();
        ALL.get_or_init(|| {
            #[allow(unused_mut)]
            let mut levels = vec![Level::Portable(Portable)];
            #[cfg(target_arch = "x86_64")]
            {
                levels.extend(super::avx2::Avx2::new().map(Level::Avx2));
                levels.extend(super::avx512::Avx512::new().map(Level::Avx512));
            }
            #[cfg(target_arch = "aarch64")]
            {
                levels.extend(super::neon::Plain::new().map(Level::Neon));
                levels.extend(super::neon::DotProd::new().map(Level::NeonDotProd));
                levels.extend(super::neon::I8mm::new().map(Level::NeonI8mm));
            }
            let kernels = |level| Kernels {
                #[cfg(target_arch = "x86_64")]
                bf16: if let Level::Avx512(_) = level { super::avx512::Avx512Bf16::new() } else { None },
                level,
            };
            levels.into_iter().map(kernels).collect()
        })
    }

    /// The best that this processor can run.
    pub fn best() -> &'static Kernels {
        Self::available().last().expect("portable is always there")
    }

    /// The kernels called `name` (`portable`, `avx2`, `avx512`, `neon`, `neon-dotprod`, `neon-i8mm`), if the processor
    /// has them.
    pub fn by_name(name: &str) -> Option<&'static Kernels> {
        Self::available().iter().find(|k| k.name() == name)
    }

    /// [`Kernels::by_name`], for a name that a person gave.
    ///
    /// # Errors
    /// `InvalidArgument`, naming those that the processor has, if this is not one of them.
    pub fn named(name: &str) -> Result<&'static Kernels> {
        Self::by_name(name).ok_or_else(|| {
            let have: Vec<&str> = Self::available().iter().map(Kernels::name).collect();
            Error::invalid(format!("instruction set `{name}` is not one of this processor's: {}", have.join(", ")))
        })
    }

    pub fn name(&self) -> &'static str {
        with_isa!(self.level, isa => name_of(isa))
    }

    /// Rows in a panel of weights.
    pub(super) fn panel_rows(&self) -> usize {
        with_isa!(self.level, isa => panel_of(isa))
    }

    /// Whether products of float weights with activations in bfloat16 are in hardware here.
    pub fn has_bf16(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16.is_some();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether they are faster than products in f32.
    pub fn prefers_bf16(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16.is_some_and(|isa| isa.pays());
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Runs a panel's product in bfloat16. The caller has asked [`Kernels::has_bf16`].
    pub(super) fn run_bf16(&self, panel: Panel, x: &Bf16Rows, scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = self.bf16 {
            return isa.run(Bf16Panel { isa, panel, x, scratch });
        }
        let _ = (panel, x, scratch);
        unreachable!("no bfloat16 products on {}", self.name());
    }

    /// Runs `op` with this instruction set.
    pub(crate) fn run<O: Op>(&self, op: O) -> O::Output {
        with_isa!(self.level, isa => isa.run(op))
    }
}
