//! AMX (Sapphire Rapids and later): matrix products in tiles of 16 rows of 64 bytes, ten times the rate of VNNI.
//!
//! There are no stable intrinsics for it, so the instructions stand in inline assembly (Intel SDM volume 1, chapter 18:
//! "Programming with Intel AMX").
//!
//! A *cell* is 4 bytes of the inner dimension: four int8 or a pair of bfloat16. All kernels here compute
//! `c[i][j] (+)= sum_s a[s][i] . b[s][j]` over *steps* of 16 cells, with
//!
//! ```text
//! a [step][rows][16 cells]           weights: a row's 64 bytes lie together
//! b [block of 16 columns][step][16 cells][16 columns]
//! c [rows][columns] 32-bit           int32 or float
//! ```

mod product;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

pub use product::AmxPanel;

use super::avx512::{Avx512, Avx512Bf16};

/// Rows of a tile, columns of a tile, and cells of a step.
pub const TILE: usize = 16;

/// Proof that the processor has AMX with int8 and bfloat16 products, that the system lets this process use it, and
/// that there is AVX-512 with VNNI and BF16.
#[derive(Clone, Copy, Debug)]
pub struct Amx {
    pub base: Avx512,
    pub bf16: Avx512Bf16,
}

impl Amx {
    pub fn new() -> Option<Self> {
        let (base, bf16) = (Avx512::new()?, Avx512Bf16::new()?);
        static ALLOWED: OnceLock<bool> = OnceLock::new();
        let allowed = *ALLOWED.get_or_init(|| has_tiles() && may_use_tiles());
        allowed.then_some(Amx { base, bf16 })
    }

    /// Configures this thread's tiles for the kernels, until the value is dropped.
    #[inline(always)]
    pub fn tiles(self) -> Tiles {
        // palette 1; all eight tiles have 16 rows of 64 bytes (SDM: "Tile configuration", table of the 64 bytes)
        let mut config = [0u8; 64];
        config[0] = 1;
        for tile in 0..8 {
            config[16 + 2 * tile] = 64;
            config[48 + tile] = 16;
        }
        // SAFETY: `self` proves AMX and the permission; the configuration is valid for palette 1
        unsafe { asm!("ldtilecfg [{}]", in(reg) config.as_ptr(), options(nostack, readonly, preserves_flags)) };
        Tiles { here: PhantomData }
    }
}

/// Whether the processor has the instructions and the system saves the registers.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATES: u64 = 3 << 17;
    #[target_feature(enable = "xsave")]
    fn states() -> u64 {
        // SAFETY: OSXSAVE says that XGETBV may be used
        #[allow(unused_unsafe)]
        unsafe {
            _xgetbv(0)
        }
    }
    // SAFETY: every x86-64 processor has CPUID, one with AVX-512 has leaf 7; `states` runs where OSXSAVE is set
    #[allow(unused_unsafe)] // safe functions since Rust 1.94
    unsafe {
        let has = |register: u32, bits: u32| register & bits == bits;
        has(__cpuid_count(7, 0).edx, BF16 | TILE | INT8)
            && has(__cpuid(1).ecx, OSXSAVE)
            && states() & TILE_STATES == TILE_STATES
    }
}

/// Asks Linux for the tiles: a process that never asks gets none, and its signal frames stay small
/// (Documentation/arch/x86/xstate.rst). Holds for all threads, and for processes forked later.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a system call on two numbers
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Not asked of systems that nobody tried it on.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// The tiles of this thread, configured. They are given back at the end, so that the system need not save them.
pub struct Tiles {
    here: PhantomData<*const ()>, // not to be sent to another thread
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the value exists only where `Amx` does
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// What two cells are multiplied as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cells {
    /// four signed bytes each, summed in int32
    Int8,
    /// two bfloat16 each, summed in f32
    Bf16,
}

/// The operands of a kernel; strides in bytes.
#[derive(Clone, Copy)]
pub struct Operands {
    pub a: *const u8,
    /// from step to step of `a`: rows * 64
    pub a_step: usize,
    pub b: *const u8,
    /// from block to block of columns in `b`
    pub b_block: usize,
    /// at least 1
    pub steps: usize,
    pub c: *mut u8,
    /// from row to row of `c`
    pub c_row: usize,
}

/// `$mul` over the steps of two times two tiles, two tiles side by side, two above each other, or one.
macro_rules! kernel {
    ($mul:literal, $p:ident, $load:expr, two by two) => {
        asm!(
            // c starts from zero or from memory
            "test {load}, {load}", "jnz 2f",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {c_row}]", "tileloadd tmm1, [{c} + {c_row} + 64]",
            "tileloadd tmm2, [{c2} + {c_row}]", "tileloadd tmm3, [{c2} + {c_row} + 64]",
            "3:",
            "tileloadd tmm6, [{b} + {row}]", "tileloadd tmm4, [{a} + {row}]",
            concat!($mul, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b2} + {row}]",
            concat!($mul, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{a} + {row} + 1024]",
            concat!($mul, " tmm2, tmm5, tmm6"),
            concat!($mul, " tmm3, tmm5, tmm7"),
            "add {a}, {a_step}", "add {b}, 1024", "add {b2}, 1024",
            "dec {steps}", "jnz 3b",
            "tilestored [{c} + {c_row}], tmm0", "tilestored [{c} + {c_row} + 64], tmm1",
            "tilestored [{c2} + {c_row}], tmm2", "tilestored [{c2} + {c_row} + 64], tmm3",
            a = inout(reg) $p.a => _,
            b = inout(reg) $p.b => _,
            b2 = inout(reg) $p.b.wrapping_add($p.b_block) => _,
            steps = inout(reg) $p.steps => _,
            load = in(reg) usize::from($load),
            a_step = in(reg) $p.a_step,
            c = in(reg) $p.c,
            c2 = in(reg) $p.c.wrapping_add(TILE * $p.c_row),
            c_row = in(reg) $p.c_row,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
    ($mul:literal, $p:ident, $load:expr, $second:literal $advance:literal $c2:expr, $b2:expr) => {
        asm!(
            "test {load}, {load}", "jnz 2f",
            "tilezero tmm0", "tilezero tmm1", "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {c_row}]", "tileloadd tmm1, [{c2} + {c_row}]",
            "3:",
            "tileloadd tmm6, [{b} + {row}]", "tileloadd tmm4, [{a} + {row}]",
            concat!($mul, " tmm0, tmm4, tmm6"),
            $second,
            concat!($mul, $advance),
            "add {a}, {a_step}", "add {b}, 1024", "add {b2}, 1024",
            "dec {steps}", "jnz 3b",
            "tilestored [{c} + {c_row}], tmm0", "tilestored [{c2} + {c_row}], tmm1",
            a = inout(reg) $p.a => _,
            b = inout(reg) $p.b => _,
            b2 = inout(reg) $b2 => _,
            steps = inout(reg) $p.steps => _,
            load = in(reg) usize::from($load),
            a_step = in(reg) $p.a_step,
            c = in(reg) $p.c,
            c2 = in(reg) $c2,
            c_row = in(reg) $p.c_row,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
    ($mul:literal, $p:ident, $load:expr, one) => {
        asm!(
            "test {load}, {load}", "jnz 2f",
            "tilezero tmm0", "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {c_row}]",
            "3:",
            "tileloadd tmm6, [{b} + {row}]", "tileloadd tmm4, [{a} + {row}]",
            concat!($mul, " tmm0, tmm4, tmm6"),
            "add {a}, {a_step}", "add {b}, 1024",
            "dec {steps}", "jnz 3b",
            "tilestored [{c} + {c_row}], tmm0",
            a = inout(reg) $p.a => _,
            b = inout(reg) $p.b => _,
            steps = inout(reg) $p.steps => _,
            load = in(reg) usize::from($load),
            a_step = in(reg) $p.a_step,
            c = in(reg) $p.c,
            c_row = in(reg) $p.c_row,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack),
        )
    };
}

macro_rules! kernels {
    ($mul:literal, $p:ident, $load:expr, $rows:expr, $columns:expr) => {
        match ($rows, $columns) {
            (2, 2) => kernel!($mul, $p, $load, two by two),
            (1, 2) => kernel!($mul, $p, $load, "tileloadd tmm7, [{b2} + {row}]" " tmm1, tmm4, tmm7"
                $p.c.wrapping_add(64), $p.b.wrapping_add($p.b_block)),
            (2, 1) => kernel!($mul, $p, $load, "tileloadd tmm5, [{a} + {row} + 1024]" " tmm1, tmm5, tmm6"
                $p.c.wrapping_add(TILE * $p.c_row), $p.b),
            _ => kernel!($mul, $p, $load, one),
        }
    };
}

impl Tiles {
    /// `c = a b`, or `c += a b`, for ROWS x COLUMNS tiles (1 or 2 each).
    ///
    /// # Safety
    /// `a` has `steps` steps with 16 * ROWS rows of 64 bytes; `b` has `steps` steps of 1024 bytes in each of its
    /// COLUMNS blocks; `c` is 16 * ROWS rows of 16 * COLUMNS 32-bit numbers, writable and used by nobody else meanwhile,
    /// and initialized if it is added to.
    #[inline(always)]
    pub unsafe fn multiply<const ROWS: usize, const COLUMNS: usize>(&self, cells: Cells, p: Operands, add: bool) {
        const { assert!(ROWS >= 1 && ROWS <= 2 && COLUMNS >= 1 && COLUMNS <= 2) };
        debug_assert!(p.steps > 0);
        // SAFETY: the tiles are configured for 16 rows of 64 bytes, the caller vouches for the memory
        unsafe {
            match cells {
                Cells::Int8 => kernels!("tdpbssd", p, add, ROWS, COLUMNS),
                Cells::Bf16 => kernels!("tdpbf16ps", p, add, ROWS, COLUMNS),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Random;

    /// Against plain loops: all shapes of tiles, one and several steps, stored and added.
    fn check<const ROWS: usize, const COLUMNS: usize>(rng: &mut Random) {
        let Some(amx) = Amx::new() else { return };
        for steps in [1, 2, 5] {
            let (rows, columns, panel_rows) = (TILE * ROWS, TILE * COLUMNS, TILE * ROWS + 16);
            let a: Vec<i8> = rng.bytes(steps * panel_rows * 64).iter().map(|b| *b as i8).collect();
            let b: Vec<i8> = rng.bytes(COLUMNS * (steps + 1) * 1024).iter().map(|b| *b as i8).collect();
            let c_row = columns + 3;
            let before: Vec<i32> = (0..rows * c_row).map(|i| i as i32 - 77).collect();
            for add in [false, true] {
                let mut c = before.clone();
                let p = Operands {
                    a: a.as_ptr().cast(),
                    a_step: panel_rows * 64,
                    b: b.as_ptr().cast(),
                    b_block: (steps + 1) * 1024,
                    steps,
                    c: c.as_mut_ptr().cast(),
                    c_row: c_row * 4,
                };
                // SAFETY: sizes as above
                unsafe { amx.tiles().multiply::<ROWS, COLUMNS>(Cells::Int8, p, add) };
                for i in 0..rows {
                    for j in 0..c_row {
                        let mut want = before[i * c_row + j];
                        if j < columns {
                            want *= i32::from(add);
                            for k in 0..steps * 64 {
                                let w = a[k / 64 * panel_rows * 64 + i * 64 + k % 64];
                                let at = j / 16 * (steps + 1) * 1024 + k / 4 * 64 + j % 16 * 4 + k % 4;
                                want += i32::from(w) * i32::from(b[at]);
                            }
                        }
                        assert_eq!(c[i * c_row + j], want, "{ROWS}x{COLUMNS} steps {steps} add {add} at {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn int8_tiles_of_every_shape_are_exact() {
        let mut rng = Random(31);
        check::<1, 1>(&mut rng);
        check::<1, 2>(&mut rng);
        check::<2, 1>(&mut rng);
        check::<2, 2>(&mut rng);
    }

    #[test]
    fn bfloat16_tiles_sum_pairs() {
        let Some(amx) = Amx::new() else { return };
        let mut rng = Random(32);
        let bf16 = |v: f32| half::bf16::from_f32(v);
        let (a, b): (Vec<_>, Vec<_>) =
            (0..2 * 32 * 32).map(|_| (bf16(rng.float()), bf16(rng.float()))).unzip::<_, _, Vec<_>, Vec<_>>();
        let mut c = vec![1.5f32; 32 * 32];
        let p = Operands {
            a: a.as_ptr().cast(),
            a_step: 32 * 64,
            b: b.as_ptr().cast(),
            b_block: 2 * 1024,
            steps: 2,
            c: c.as_mut_ptr().cast(),
            c_row: 32 * 4,
        };
        // SAFETY: sizes as above
        unsafe { amx.tiles().multiply::<2, 2>(Cells::Bf16, p, true) };
        for (i, j) in (0..32).flat_map(|i| (0..32).map(move |j| (i, j))) {
            let (mut want, mut size) = (1.5f64, 1.5f64);
            for k in 0..64 {
                let w = a[k / 32 * 32 * 32 + i * 32 + k % 32].to_f64();
                let x = b[j / 16 * 1024 + k / 2 * 32 + j % 16 * 2 + k % 2].to_f64();
                want += w * x;
                size += (w * x).abs();
            }
            assert!((f64::from(c[i * 32 + j]) - want).abs() <= 1e-5 * size, "{i} {j}: {} for {want}", c[i * 32 + j]);
        }
    }
}
