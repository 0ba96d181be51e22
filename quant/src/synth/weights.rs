//! Random weights, made row by row: what a row holds depends on the seed, the tensor and the row alone, so that any
//! number of threads makes the same file.

use mmada::gguf::GgmlType;
use mmada::{Error, Result};

use super::Spread;
use crate::rows::{Rows, Scratch};

/// A tensor of random weights.
pub struct RandomRows {
    seed: u64,
    name: String,
    spread: Spread,
}

impl RandomRows {
    pub fn new(seed: u64, name: &str, spread: Spread) -> Self {
        // FNV-1a over the name, so that tensors differ.
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fold);
        RandomRows { seed: mix(seed ^ mix(hash)), name: name.to_owned(), spread }
    }
}

impl Rows for RandomRows {
    fn row_bytes(&self) -> usize {
        0
    }

    fn read(&self, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn decode(&self, row: usize, _: &[u8], _: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let mut state = mix(self.seed ^ row as u64);
        let Spread { mean, deviation } = self.spread;
        // The sum of four uniform numbers of 16 bits has a variance of 2^32 / 3.
        let scale = deviation * 3.0f32.sqrt() / 65536.0;
        for x in out {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = mix(state);
            let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
            *x = mean + (sum as f32 - 131_070.0) * scale;
        }
        Ok(())
    }

    fn stored_as(&self) -> Option<GgmlType> {
        None
    }

    fn fault(&self, row: usize, reason: &str) -> Error {
        Error::Internal(format!("tensor {}, row {row}: {reason}", self.name))
    }
}

/// The output function of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u64, name: &str, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; 40_001];
        let spread = Spread { mean: 0.5, deviation: 2.0 };
        RandomRows::new(seed, name, spread).decode(row, &[], &mut Scratch::default(), &mut out).unwrap();
        out
    }

    #[test]
    fn weights_have_the_mean_and_the_deviation_asked_for() {
        let x = row(3, "a", 7);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!((mean - 0.5).abs() < 0.04 && (variance.sqrt() - 2.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn rows_tensors_and_seeds_differ_and_come_back() {
        assert_eq!(row(3, "a", 7), row(3, "a", 7));
        for other in [row(3, "a", 8), row(3, "b", 7), row(4, "a", 7)] {
            assert_ne!(row(3, "a", 7), other);
        }
    }
}
