//! Loops of AArch64 instructions. Registers are named in the text of the assembly; `clobber_abi` and the named outputs
//! say that they change.

use std::arch::{asm, is_aarch64_feature_detected};

use super::{Block, Loop, Operands};

/// A function that repeats `$line` for the accumulators 0 to 11 (`\i`), which begin at zero; registers 30 and 31 hold
/// operands. In `$line`, register 29 is loaded from memory.
macro_rules! loops {
    ($name:ident, $extension:literal, $line:literal) => {
        fn $name(turns: usize, operands: &Block) {
            // SAFETY: `loops` offers this only where the processor has the instructions. All registers that change are
            // declared, and memory is only read, inside of the 8 KiB of `operands`.
            unsafe {
                asm!(
                    $extension,
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11",
                    "movi v\\i\\().4s, #0",
                    ".endr",
                    "ldp q30, q31, [{p}]",
                    "2:",
                    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11",
                    $line,
                    ".endr",
                    "subs x9, x9, #1",
                    "b.ne 2b",
                    inout("x9") turns => _,
                    p = in(reg) operands.0.as_ptr(),
                    out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                    clobber_abi("C"),
                    options(nostack, readonly)
                )
            }
        }
    };
}

loops!(sdot, ".arch_extension dotprod", "sdot v\\i\\().4s, v30.16b, v31.16b");
loops!(sdot_memory, ".arch_extension dotprod", "ldr q29, [{p}, #(16 * \\i)]\n sdot v\\i\\().4s, v30.16b, v29.16b");
loops!(smmla, ".arch_extension i8mm", "smmla v\\i\\().4s, v30.16b, v31.16b");
loops!(smmla_memory, ".arch_extension i8mm", "ldr q29, [{p}, #(16 * \\i)]\n smmla v\\i\\().4s, v30.16b, v29.16b");
loops!(bfmmla, ".arch_extension bf16", "bfmmla v\\i\\().4s, v30.8h, v31.8h");
loops!(bfmmla_memory, ".arch_extension bf16", "ldr q29, [{p}, #(16 * \\i)]\n bfmmla v\\i\\().4s, v30.8h, v29.8h");
loops!(smull, "", "smull v28.8h, v30.8b, v31.8b\n sadalp v\\i\\().4s, v28.8h");
loops!(smull_memory, "", "ldr q29, [{p}, #(16 * \\i)]\n smull v28.8h, v30.8b, v29.8b\n sadalp v\\i\\().4s, v28.8h");
loops!(fmla, "", "fmla v\\i\\().4s, v30.4s, v31.4s");
loops!(fmla_memory, "", "ldr q29, [{p}, #(16 * \\i)]\n fmla v\\i\\().4s, v30.4s, v29.4s");

/// The loops that this processor can run.
pub fn loops() -> Vec<Loop> {
    use Operands::*;
    let mut all = Vec::new();
    let mut add = |name, operands, multiply_adds: usize, registers, memory| {
        all.push(Loop { name, operands, operations: 12 * 2 * multiply_adds, registers, memory });
    };
    if is_aarch64_feature_detected!("i8mm") {
        add("SMMLA", Int8, 32, smmla as _, smmla_memory as _);
    }
    if is_aarch64_feature_detected!("bf16") {
        add("BFMMLA", Bf16, 16, bfmmla as _, bfmmla_memory as _);
    }
    if is_aarch64_feature_detected!("dotprod") {
        add("SDOT", Int8, 16, sdot as _, sdot_memory as _);
    }
    add("SMULL", Int8, 8, smull as _, smull_memory as _);
    add("FMLA", F32, 4, fmla as _, fmla_memory as _);
    all
}
