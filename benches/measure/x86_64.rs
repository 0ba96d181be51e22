//! Loops of x86-64 instructions. Registers are named in the text of the assembly; `clobber_abi` says that all of them
//! change.

use std::arch::x86_64::__cpuid_count;
use std::arch::{asm, is_x86_feature_detected};

use super::{Block, Loop, Operands};

/// A function that repeats `$line` for the accumulators 0 to 11 (`\i`), which begin at zero; registers 14 and 15 hold
/// operands.
macro_rules! loops {
    ($name:ident, $register:literal, $line:literal) => {
        fn $name(turns: usize, operands: &Block) {
            // SAFETY: `loops` offers this only where the processor has the instructions. All vector registers are
            // declared as changed, and memory is only read, inside of the 8 KiB of `operands`.
            unsafe {
                asm!(
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11",
                    "vxorps xmm\\i, xmm\\i, xmm\\i",
                    ".endr",
                    concat!("vmovups ", $register, "14, [{p}]"),
                    concat!("vmovups ", $register, "15, [{p} + 64]"),
                    "2:",
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11",
                    $line,
                    ".endr",
                    "dec rcx",
                    "jnz 2b",
                    "vzeroupper",
                    inout("rcx") turns => _,
                    p = in(reg) operands.0.as_ptr(),
                    clobber_abi("C"),
                    options(nostack, readonly)
                )
            }
        }
    };
}

loops!(vnni512, "zmm", "vpdpbusd zmm\\i, zmm14, zmm15");
loops!(vnni512_memory, "zmm", "vpdpbusd zmm\\i, zmm14, [{p} + 64 * \\i]");
loops!(bf16, "zmm", "vdpbf16ps zmm\\i, zmm14, zmm15");
loops!(bf16_memory, "zmm", "vdpbf16ps zmm\\i, zmm14, [{p} + 64 * \\i]");
loops!(fma512, "zmm", "vfmadd231ps zmm\\i, zmm14, zmm15");
loops!(fma512_memory, "zmm", "vfmadd231ps zmm\\i, zmm14, [{p} + 64 * \\i]");
loops!(vnni256, "ymm", "{{vex}} vpdpbusd ymm\\i, ymm14, ymm15");
loops!(vnni256_memory, "ymm", "{{vex}} vpdpbusd ymm\\i, ymm14, [{p} + 32 * \\i]");
loops!(maddubs, "ymm", "vpmaddubsw ymm13, ymm14, ymm15\n vpmaddwd ymm13, ymm13, ymm14\n vpaddd ymm\\i, ymm\\i, ymm13");
loops!(
    maddubs_memory,
    "ymm",
    "vpmaddubsw ymm13, ymm14, [{p} + 32 * \\i]\n vpmaddwd ymm13, ymm13, ymm14\n vpaddd ymm\\i, ymm\\i, ymm13"
);
loops!(fma256, "ymm", "vfmadd231ps ymm\\i, ymm14, ymm15");
loops!(fma256_memory, "ymm", "vfmadd231ps ymm\\i, ymm14, [{p} + 32 * \\i]");

/// The palette of tiles (Intel SDM volume 1, 18.2): 8 tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// A function that repeats `$lines` with four accumulators (tiles 0 to 3) and operands in tiles 4 to 7.
macro_rules! tiles {
    ($name:ident, [$($line:literal),* $(,)?]) => {
        fn $name(turns: usize, operands: &Block) {
            // SAFETY: `loops` offers this only where the processor has the instructions and the system lets this
            // process use them. All tiles are declared as changed, and memory is only read: `TILES`, and 4 KiB of
            // `operands`.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tileloadd tmm4, [{p} + {row} * 1]", "tileloadd tmm5, [{p} + {row} * 1 + 1024]",
                    "tileloadd tmm6, [{p} + {row} * 1 + 2048]", "tileloadd tmm7, [{p} + {row} * 1 + 3072]",
                    "2:",
                    $($line,)*
                    "dec rcx",
                    "jnz 2b",
                    "tilerelease",
                    inout("rcx") turns => _,
                    p = in(reg) operands.0.as_ptr(),
                    row = in(reg) 64usize,
                    config = in(reg) &TILES,
                    clobber_abi("C"),
                    options(nostack, readonly)
                )
            }
        }
    };
}

tiles!(
    amx_int8,
    ["tdpbusd tmm0, tmm4, tmm6", "tdpbusd tmm1, tmm5, tmm6", "tdpbusd tmm2, tmm4, tmm7", "tdpbusd tmm3, tmm5, tmm7",]
);
tiles!(
    amx_int8_memory,
    [
        "tileloadd tmm4, [{p} + {row} * 1]",
        "tdpbusd tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{p} + {row} * 1 + 1024]",
        "tdpbusd tmm1, tmm5, tmm6",
        "tileloadd tmm7, [{p} + {row} * 1 + 3072]",
        "tdpbusd tmm2, tmm4, tmm7",
        "tileloadd tmm6, [{p} + {row} * 1 + 2048]",
        "tdpbusd tmm3, tmm5, tmm7",
    ]
);
tiles!(
    amx_bf16,
    [
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm5, tmm6",
        "tdpbf16ps tmm2, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ]
);
tiles!(
    amx_bf16_memory,
    [
        "tileloadd tmm4, [{p} + {row} * 1]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{p} + {row} * 1 + 1024]",
        "tdpbf16ps tmm1, tmm5, tmm6",
        "tileloadd tmm7, [{p} + {row} * 1 + 3072]",
        "tdpbf16ps tmm2, tmm4, tmm7",
        "tileloadd tmm6, [{p} + {row} * 1 + 2048]",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ]
);

/// Bits of CPUID leaf 7 (EDX) that say what tiles can multiply; `None` where there are no tiles, or the system does not
/// let this process use them.
fn amx() -> Option<(bool, bool)> {
    #[allow(unused_unsafe)] // newer compilers know that it is safe here
    // SAFETY: every x86-64 processor has the instruction, which only reads
    let bits = unsafe { __cpuid_count(7, 0) }.edx;
    let bit = |bit: u32| bits >> bit & 1 == 1;
    let (bf16, tile, int8) = (bit(22), bit(24), bit(25));
    (tile && permitted()).then_some((int8, bf16))
}

/// Asks Linux for the use of tiles' data (Documentation/arch/x86/xstate.rst of the kernel): once for the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of this process
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The loops that this processor can run.
pub fn loops() -> Vec<Loop> {
    use Operands::*;
    let mut all = Vec::new();
    let mut add = |name, operands, operations, registers, memory| {
        all.push(Loop { name, operands, operations, registers, memory });
    };
    if let Some((int8, bf16)) = amx() {
        // 16 x 16 sums of 64 products of bytes, or of 32 of bfloat16
        if int8 {
            add("AMX TDPBUSD", Int8, 4 * 2 * 16 * 16 * 64, amx_int8 as _, amx_int8_memory as _);
        }
        if bf16 {
            add("AMX TDPBF16PS", Bf16, 4 * 2 * 16 * 16 * 32, amx_bf16 as _, amx_bf16_memory as _);
        }
    }
    if is_x86_feature_detected!("avx512vnni") {
        add("VPDPBUSD 512", Int8, 12 * 2 * 64, vnni512 as _, vnni512_memory as _);
    }
    if is_x86_feature_detected!("avx512bf16") {
        add("VDPBF16PS 512", Bf16, 12 * 2 * 32, bf16 as _, bf16_memory as _);
    }
    if is_x86_feature_detected!("avx512f") {
        add("VFMADD231PS 512", F32, 12 * 2 * 16, fma512 as _, fma512_memory as _);
    }
    if is_x86_feature_detected!("avxvnni") {
        add("VPDPBUSD 256", Int8, 12 * 2 * 32, vnni256 as _, vnni256_memory as _);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        add("VPMADDUBSW 256", Int8, 12 * 2 * 32, maddubs as _, maddubs_memory as _);
        add("VFMADD231PS 256", F32, 12 * 2 * 8, fma256 as _, fma256_memory as _);
    }
    all
}
