//! What this machine can do: the rate of every dot instruction and the bandwidth of reading, measured in the same run
//! as the kernels, so that a share of it means something on a shared machine with changing clocks.
//!
//! Every loop is inline assembly with 12 accumulators that do not wait for each other (4 tiles with AMX), so that
//! nothing is optimized away. With a "memory" operand, each instruction reads one from the first-level cache: an
//! instruction of AMX, which has no such form, follows a load of a tile.

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
mod arch {
    pub fn loops() -> Vec<super::Loop> {
        Vec::new()
    }
}

use std::hint::black_box;

use super::best;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operands {
    Int8,
    Bf16,
    F32,
}

/// A loop of one instruction.
pub struct Loop {
    /// The instruction's name and the bits of its registers.
    pub name: &'static str,
    pub operands: Operands,
    /// Operations (2 per multiply-add) of one turn.
    pub operations: usize,
    /// Takes that many turns, all operands in registers.
    pub registers: fn(turns: usize, operands: &Block),
    /// The same, one operand from memory.
    pub memory: fn(turns: usize, operands: &Block),
}

/// Operands in the first-level cache: 8 KiB.
#[repr(align(64))]
pub struct Block([u32; 2048]);

/// What an instruction reaches, in GOP/s of all threads together.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub name: &'static str,
    pub operands: Operands,
    pub registers: f64,
    pub memory: f64,
}

impl Rate {
    /// The faster of both ways.
    pub fn best(&self) -> f64 {
        self.registers.max(self.memory)
    }

    /// What part of it `speed` is, to be printed.
    pub fn share(&self, speed: f64) -> String {
        format!("{:5.1}% of {:5.0} {}", 100.0 * speed / self.best(), self.best(), self.name)
    }
}

/// What some threads reach together; by default unknown.
#[derive(Default)]
pub struct Machine {
    rates: Vec<Rate>,
    /// GB/s of reading memory in order
    pub bandwidth: f64,
}

impl Machine {
    /// Measures and prints it.
    pub fn measure(threads: usize) -> Machine {
        let measured = |l: Loop| Rate {
            name: l.name,
            operands: l.operands,
            registers: rate(l.registers, l.operations, threads),
            memory: rate(l.memory, l.operations, threads),
        };
        let rates: Vec<Rate> = arch::loops().into_iter().map(measured).collect();
        let bandwidth = bandwidth(threads);
        println!("\npeak of {threads} threads, GOP/s      registers   memory operand");
        for r in &rates {
            println!("  {:<28} {:11.0} {:15.0}", r.name, r.registers, r.memory);
        }
        println!("  reading memory: {bandwidth:.1} GB/s\n");
        Machine { rates, bandwidth }
    }

    /// The rate of the instruction that the kernels called `variant` multiply `operands` with.
    pub fn ceiling(&self, variant: &str, operands: Operands) -> Option<Rate> {
        let instructions: &[&str] = match variant {
            "amx" => &["AMX TDPBUSD", "AMX TDPBF16PS", "VFMADD231PS 512"],
            "avx512" => &["VPDPBUSD 512", "VDPBF16PS 512", "VFMADD231PS 512"],
            "avx2" => &["VPMADDUBSW 256", "VFMADD231PS 256"],
            "avx2-vnni" => &["VPDPBUSD 256", "VFMADD231PS 256"],
            "neon" => &["SMULL", "FMLA"],
            "neon-dotprod" => &["SDOT", "FMLA"],
            "neon-i8mm" => &["SMMLA", "BFMMLA", "FMLA"],
            _ => &[],
        };
        self.rates.iter().find(|r| r.operands == operands && instructions.contains(&r.name)).copied()
    }

    /// The faster rate of bfloat16 and f32: processors with AMX have a VDPBF16PS that is slower than two VFMADD231PS.
    pub fn float_ceiling(&self, variant: &str) -> Option<Rate> {
        let rates = [Operands::Bf16, Operands::F32].map(|operands| self.ceiling(variant, operands));
        rates.into_iter().flatten().max_by(|a, b| a.best().total_cmp(&b.best()))
    }
}

fn rate(run: fn(usize, &Block), operations: usize, threads: usize) -> f64 {
    const TURNS: usize = 100_000;
    // 1.0 in f32; 0.0 and 1.0 in bfloat16; 0, 0, -128 and 63 as bytes: no sum is subnormal, infinite or NaN
    let block = Block([0x3f80_0000; 2048]);
    let seconds = best(threads, 0.1, || each(threads, || run(TURNS, &block)));
    (operations * TURNS * threads) as f64 / seconds / 1e9
}

/// GB/s of reading memory in order, all threads together.
fn bandwidth(threads: usize) -> f64 {
    const BYTES: usize = 256 << 20;
    let data: Vec<u64> = (0..BYTES as u64 / 8).collect();
    let sum = || {
        let mut sums = [0u64; 16];
        for part in data.as_chunks::<16>().0 {
            for (sum, v) in sums.iter_mut().zip(part) {
                *sum = sum.wrapping_add(*v);
            }
        }
        black_box(sums);
    };
    (BYTES * threads) as f64 / best(threads, 0.3, || each(threads, sum)) / 1e9
}

/// Runs `work` on that many threads at once, one of them this.
fn each(threads: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(&work);
        }
        work();
    });
}
