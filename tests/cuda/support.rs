//! Random numbers and the threads that expected results are computed with.

use mmada::kernels::Kernels;
use mmada::parallel::{Exec, Threads};
use mmada::tensor::{GgmlType, can_dequantize};

/// A small generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// About normal, with a few outliers 30 times as large.
    pub fn float(&mut self) -> f32 {
        let sum: f32 = (0..6).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum();
        if self.bits().is_multiple_of(97) { sum * 30.0 } else { sum }
    }
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn scale(&mut self) -> half::f16 {
        match self.bits() % 16 {
            0 => half::f16::ZERO,
            1 => half::f16::from_bits(3),
            _ => half::f16::from_f32(self.float() * 0.01),
        }
    }

    /// Weights of any type: all bit patterns, with finite scales, zero and subnormal among them.
    pub fn weights(&mut self, dtype: GgmlType, rows: usize, cols: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..rows * dtype.row_bytes(cols).unwrap()).map(|_| self.bits() as u8).collect();
        use GgmlType::*;
        let halves: &[usize] = match dtype {
            MXFP4 | NVFP4 | IQ1_M => &[],
            TQ1_0 => &[52],
            TQ2_0 => &[64],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q6_K => &[208],
            Q3_K => &[108],
            Q2_K => &[80, 82],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in halves {
                block[at..at + 2].copy_from_slice(&self.scale().to_le_bytes());
            }
            if dtype == IQ1_M {
                // four bits in each of four words
                let d = self.scale().to_bits();
                for i in 0..4 {
                    block[49 + 2 * i] = block[49 + 2 * i] & 15 | (d >> (4 * i) << 4) as u8;
                }
            }
            if dtype == MXFP4 {
                block[0] = 100 + block[0] % 32;
            }
        }
        bytes
    }
}

/// The types of weights: there are embeddings and products in bfloat16 for all of them.
pub fn types() -> Vec<GgmlType> {
    GgmlType::all().filter(|t| can_dequantize(*t)).collect()
}

/// Runs `work` with the specification's kernels.
pub fn portable<R>(work: impl FnOnce(&Exec) -> R) -> R {
    let threads = Threads::new(2).unwrap();
    work(&Exec::new(&threads, Kernels::by_name("portable").unwrap(), None))
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

pub fn to_bf16(x: &[f32]) -> Vec<u16> {
    x.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect()
}

/// What rounding to bfloat16 leaves of `x`, itself rounded.
pub fn bf16_rest(x: &[f32]) -> Vec<u16> {
    let left: Vec<f32> = x.iter().map(|v| v - half::bf16::from_f32(*v).to_f32()).collect();
    to_bf16(&left)
}

/// Every number to within `relative` of the largest expected magnitude.
pub fn assert_close(got: &[f32], expected: &[f32], relative: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0f32, |size, v| size.max(v.abs()));
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= relative * size, "{what}: element {i} is {g}, not {e} (of up to {size})");
    }
}
