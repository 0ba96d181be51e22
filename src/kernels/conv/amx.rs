//! The products of a window on AMX: two tiles of 16 pixels, one and two blocks of 16 outputs, four tiles of sums.

use std::arch::asm;

use super::bf16;
use super::geometry::{LINE, Measures, Plan, TILE};
use super::pixels::Affine;
use super::results::Results;
use super::unit::{Cells, Operands, Sums, Unit};
use crate::kernels::amx::{Amx, Tiles};
use crate::kernels::avx512::Avx512;
use crate::kernels::isa::{LANES, Op};

/// AMX with pixels and weights in bfloat16, or in two terms of it.
#[derive(Clone, Copy)]
pub struct InTiles<const SPLIT: bool>(pub Amx);

impl<const SPLIT: bool> Unit for InTiles<SPLIT> {
    const MEASURES: Measures =
        Measures { cell: 2, terms: if SPLIT { 2 } else { 1 }, tile: TILE, ring: 640 << 10, group: 640 << 10 };
    type Isa = Avx512;
    type Tiles = Tiles;

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.0.base
    }
    #[inline(always)]
    fn run<O: Op>(self, op: O) -> O::Output {
        self.0.bf16.run(op)
    }
    #[inline(always)]
    fn tiles(self) -> Tiles {
        self.0.tiles()
    }
    #[inline(always)]
    unsafe fn convert(self, pixels: &[f32], affine: &Affine, plan: &Plan, to: *mut u8) {
        // SAFETY: the caller's promise
        unsafe { bf16::convert::<SPLIT>(self.0.bf16, pixels, affine, plan, to) }
    }
    #[inline(always)]
    fn round(self, weights: &[f32; 2 * LANES], cells: &mut Cells) {
        bf16::round::<SPLIT>(self.0.bf16, weights, cells);
    }
    #[inline(always)]
    unsafe fn multiply<const BLOCKS: usize>(
        self,
        tiles: &Tiles,
        p: Operands,
        from: Sums,
        results: &Results,
        before: Option<&Results>,
    ) {
        // SAFETY: the caller's promise
        unsafe {
            begin::<BLOCKS>(tiles, from);
            multiply::<SPLIT, BLOCKS>(tiles, p);
            if let Some(before) = before {
                before.finish(self.isa());
            }
            end::<BLOCKS>(tiles, results.tiles);
        }
    }
}

/// Asks for the weights two steps ahead (one of two terms): they come from the second cache in order, but a tile that
/// waits for its lines holds up those behind it.
macro_rules! fetch {
    ($($at:literal)+) => { concat!($("prefetcht0 [{w} + ", $at, "]\n"),+) };
}

macro_rules! products {
    ($p:ident, $($body:expr),+) => {
        asm!(
            "2:",
            "mov {r0:e}, dword ptr [{places}]", "mov {r1:e}, dword ptr [{places} + 4]",
            "add {r0}, {ring}", "add {r1}, {ring}",
            $($body),+,
            "add {places}, 8", "dec {steps}", "jnz 2b",
            ring = in(reg) $p.ring,
            places = inout(reg) $p.places => _,
            w = inout(reg) $p.weights => _,
            steps = inout(reg) $p.steps => _,
            pixel = in(reg) $p.pixel,
            plane = in(reg) $p.plane,
            line = in(reg) LINE,
            r0 = out(reg) _,
            r1 = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        )
    };
}

/// # Safety
/// The tiles are configured; all steps' pixels and weights are readable, in BLOCKS blocks of outputs; with SPLIT both
/// have two terms, the rest before the rounded number in the weights.
#[inline(always)]
unsafe fn multiply<const SPLIT: bool, const BLOCKS: usize>(_: &Tiles, p: Operands) {
    // `plane` is used by the products of two terms alone
    // SAFETY: the caller's promise
    unsafe {
        match (SPLIT, BLOCKS) {
            (false, 2) => products!(
                p,
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(4096 4160 4224 4288 4352 4416 4480 4544),
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                fetch!(4608 4672 4736 4800 4864 4928 4992 5056),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(5120 5184 5248 5312 5376 5440 5504 5568),
                "tdpbf16ps tmm3, tmm5, tmm7",
                fetch!(5632 5696 5760 5824 5888 5952 6016 6080),
                "add {w}, 2048 /* {plane} */"
            ),
            (false, _) => products!(
                p,
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(2048 2112 2176 2240 2304 2368 2432 2496),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(2560 2624 2688 2752 2816 2880 2944 3008),
                "add {w}, 1024 /* {plane} */"
            ),
            (true, 2) => products!(
                p,
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(4096 4160 4224 4288 4352 4416),
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                fetch!(4480 4544 4608 4672 4736 4800),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(4864 4928 4992 5056 5120 5184),
                "tdpbf16ps tmm3, tmm5, tmm7",
                fetch!(5248 5312 5376 5440 5504 5568),
                "tileloadd tmm6, [{w} + {line} + 2048]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(5632 5696 5760 5824 5888 5952),
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(6016 6080 6144 6208 6272 6336),
                "tileloadd tmm7, [{w} + {line} + 3072]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                fetch!(6400 6464 6528 6592 6656 6720),
                "tdpbf16ps tmm3, tmm5, tmm7",
                fetch!(6784 6848 6912 6976 7040 7104),
                "add {r0}, {plane}",
                "add {r1}, {plane}",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(7168 7232 7296 7360 7424 7488),
                "tdpbf16ps tmm1, tmm4, tmm7",
                fetch!(7552 7616 7680 7744 7808 7872),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(7936 8000 8064 8128),
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {w}, 4096"
            ),
            (true, _) => products!(
                p,
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                fetch!(2048 2112 2176 2240 2304 2368),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                fetch!(2432 2496 2560 2624 2688 2752),
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm7",
                fetch!(2816 2880 2944 3008 3072 3136),
                "tdpbf16ps tmm2, tmm5, tmm7",
                fetch!(3200 3264 3328 3392 3456 3520),
                "add {r0}, {plane}",
                "add {r1}, {plane}",
                "tileloadd tmm4, [{r0} + {pixel}]",
                "tdpbf16ps tmm0, tmm4, tmm7",
                fetch!(3584 3648 3712 3776 3840 3904),
                "tileloadd tmm5, [{r1} + {pixel}]",
                "tdpbf16ps tmm2, tmm5, tmm7",
                fetch!(3968 4032),
                "add {w}, 2048"
            ),
        }
    }
}

/// Loads the sums that [`multiply`] adds to.
///
/// # Safety
/// The tiles are configured; the sums are readable.
#[inline(always)]
unsafe fn begin<const BLOCKS: usize>(_: &Tiles, from: Sums) {
    // SAFETY: the caller's promise
    unsafe {
        asm!("tileloadd tmm0, [{a} + {pixel}]", "tileloadd tmm2, [{b} + {pixel}]",
            a = in(reg) from.rows[0], b = in(reg) from.rows[1], pixel = in(reg) from.pixel,
            out("tmm0") _, out("tmm2") _, options(nostack, readonly, preserves_flags));
        if BLOCKS == 2 {
            asm!("tileloadd tmm1, [{a} + {pixel} + 64]", "tileloadd tmm3, [{b} + {pixel} + 64]",
                a = in(reg) from.rows[0], b = in(reg) from.rows[1], pixel = in(reg) from.pixel,
                out("tmm1") _, out("tmm3") _, options(nostack, readonly, preserves_flags));
        }
    }
}

/// Stores the sums.
///
/// # Safety
/// [`begin`] and [`multiply`] came before; `to` is writable and used by nobody else meanwhile.
#[inline(always)]
unsafe fn end<const BLOCKS: usize>(tiles: &Tiles, to: Sums) {
    // SAFETY: the caller's promise
    unsafe {
        tiles.store::<0>(to.rows[0].cast(), to.pixel);
        if BLOCKS == 2 {
            tiles.store::<1>(to.rows[0].add(16).cast(), to.pixel);
        }
        tiles.store::<2>(to.rows[1].cast(), to.pixel);
        if BLOCKS == 2 {
            tiles.store::<3>(to.rows[1].add(16).cast(), to.pixel);
        }
    }
}
