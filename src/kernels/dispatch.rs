//! Which instruction set runs: the best that the processor has, looked at once, or a lower one by name.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::activations::Bf16Rows;
use super::activations::Scales;
#[cfg(target_arch = "x86_64")]
use super::amx::AmxPanel;
use super::isa::{Isa, LANES, Op};
use super::packed::PackPanel;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::product::{Activations, Bf16Tiles};
use super::product::{Panel, PanelTask, Scratch};
use super::unpack::Arithmetic;
use crate::error::{Error, Result};
use crate::tensor::GgmlType;

/// The kernels of one instruction set. All give the same results up to the rounding of fused multiply-adds.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    #[cfg(target_arch = "x86_64")]
    bf16: Option<super::avx512::Avx512Bf16>,
    #[cfg(target_arch = "x86_64")]
    amx: Option<super::amx::Amx>,
}

#[derive(Clone, Copy, Debug)]
enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Plain),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(super::avx2::Vnni),
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
    tiles: super::avx512::Avx512Bf16,
    panel: Panel<'a>,
    x: &'a Bf16Rows,
    scratch: &'a mut Scratch,
}

#[cfg(target_arch = "x86_64")]
struct PackBf16<'a> {
    panel: PackPanel<'a>,
    tiles: super::avx512::Avx512Bf16,
}

#[cfg(target_arch = "x86_64")]
impl Op for PackBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        self.panel.bf16(isa, self.tiles);
    }
}

#[cfg(target_arch = "x86_64")]
impl Op for Bf16Panel<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        self.panel.bf16(isa, self.tiles, self.x, self.scratch);
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
            Level::Avx2Vnni($isa) => $body,
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
fn int8_rows_of<I: Isa>(_: I) -> usize {
    I::INT8_ROWS
}
fn biased_of<I: Isa>(_: I) -> bool {
    I::BIASED
}

/// Most rows of a panel of int8 or bfloat16 weights: those of a chunk then fit into the first cache.
const PANEL_ROWS: usize = 64;

impl Kernels {
    /// All that this processor can run, the slowest first.
    pub fn available() -> &'static [Kernels] {
        static ALL: OnceLock<Vec<Kernels>> = OnceLock::new();
        ALL.get_or_init(|| {
            #[allow(unused_mut)]
            let mut levels = vec![Level::Portable(Portable)];
            #[cfg(target_arch = "x86_64")]
            {
                levels.extend(super::avx2::Plain::new().map(Level::Avx2));
                levels.extend(super::avx2::Vnni::new().map(Level::Avx2Vnni));
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
                #[cfg(target_arch = "x86_64")]
                amx: None,
                level,
            };
            #[allow(unused_mut)]
            let mut all: Vec<Kernels> = levels.into_iter().map(kernels).collect();
            #[cfg(target_arch = "x86_64")]
            all.extend(super::amx::Amx::new().map(|amx| Kernels {
                level: Level::Avx512(amx.base),
                bf16: Some(amx.bf16),
                amx: Some(amx),
            }));
            all
        })
    }

    /// The best that this processor can run.
    pub fn best() -> &'static Kernels {
        Self::available().last().expect("portable is always there")
    }

    /// The kernels called `name` (`portable`, `avx2`, `avx2-vnni`, `avx512`, `amx`, `neon`, `neon-dotprod`,
    /// `neon-i8mm`), if the processor has them.
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
        if self.has_amx() { "amx" } else { with_isa!(self.level, isa => name_of(isa)) }
    }

    fn has_amx(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.amx.is_some();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Rows in a panel of float weights, and of queries.
    pub(super) fn float_panel_rows(&self) -> usize {
        with_isa!(self.level, isa => panel_of(isa))
    }

    /// Rows in a panel of weights.
    pub(super) fn panel_rows(&self, arithmetic: Arithmetic) -> usize {
        match arithmetic {
            Arithmetic::F32 => self.float_panel_rows(),
            Arithmetic::Int8(scales) if !self.has_tiles(scales) => {
                let tile = with_isa!(self.level, isa => int8_rows_of(isa));
                PANEL_ROWS / tile * tile
            }
            Arithmetic::Bf16 if !self.has_amx() => self.bf16_panel_rows(),
            _ => PANEL_ROWS,
        }
    }

    fn bf16_panel_rows(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        return PANEL_ROWS / <super::avx512::Avx512Bf16 as Bf16Tiles>::ROWS
            * <super::avx512::Avx512Bf16 as Bf16Tiles>::ROWS;
        #[cfg(not(target_arch = "x86_64"))]
        PANEL_ROWS
    }

    /// Whether int8 products with these scales run on AMX: groups of 16 or 32 elements are too short for it.
    fn has_tiles(&self, scales: Scales) -> bool {
        self.has_amx() && scales == Scales::Wide
    }

    /// Whether int8 activations are stored with 128 added.
    pub(super) fn biased(&self, scales: Scales) -> bool {
        !self.has_tiles(scales) && with_isa!(self.level, isa => biased_of(isa))
    }

    /// Whether products of weights with activations in bfloat16 are in hardware here.
    pub fn has_bf16(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16.is_some();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether they are faster than products in f32, and attention too.
    pub fn prefers_bf16(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.amx.is_some() || self.bf16.is_some_and(|isa| isa.pays());
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether products with [`Scales::Mixed`] are the fastest that keep the scales of blocks.
    fn prefers_mixed(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return !self.has_amx() && matches!(self.level, Level::Avx512(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// The token of AMX, where these kernels use it.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn amx(&self) -> Option<super::amx::Amx> {
        self.amx
    }

    /// The token of AVX512-BF16, where there is one.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bf16(&self) -> Option<super::avx512::Avx512Bf16> {
        self.bf16
    }

    /// How weights of a type are best multiplied; `fast` allows 8- and 16-bit products of what is stored in more.
    pub fn arithmetic(&self, dtype: GgmlType, fast: bool) -> Arithmetic {
        Arithmetic::of(dtype, fast, self.prefers_bf16(), self.has_amx(), self.prefers_mixed())
    }

    /// Runs a panel's product. For activations in bfloat16 the caller has asked [`Kernels::has_bf16`].
    pub(super) fn run_panel(&self, panel: Panel, scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        match (panel.x, self.amx, self.bf16) {
            (Activations::Bf16(_), Some(amx), _) => return amx.bf16.run(AmxPanel { amx, panel, scratch }),
            (Activations::Int8(x), Some(amx), _) if self.has_tiles(x.scales()) => {
                return amx.bf16.run(AmxPanel { amx, panel, scratch });
            }
            (Activations::Bf16(x), None, Some(tiles)) => return tiles.run(Bf16Panel { tiles, panel, x, scratch }),
            _ => {}
        }
        self.run(PanelTask { panel, scratch });
    }

    /// Makes a panel that is kept. For bfloat16 the caller has asked [`Kernels::has_bf16`].
    pub(super) fn pack(&self, panel: PackPanel) {
        #[cfg(target_arch = "x86_64")]
        if let (Arithmetic::Bf16, Some(tiles)) = (panel.arithmetic(), self.bf16) {
            return tiles.run(PackBf16 { panel, tiles });
        }
        self.run(panel);
    }

    /// Runs `op` with this instruction set.
    pub(crate) fn run<O: Op>(&self, op: O) -> O::Output {
        with_isa!(self.level, isa => isa.run(op))
    }
}
