//! Random numbers that depend on nothing but their place: not on threads, batch, backend or the order of asking.
//!
//! The generator is Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011), a keyed bijection of 128-bit counters: the seed is the key, the place of the draw is the counter.

/// Which part of a generation a draw belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// An answer, or the description of a reasoned drawing.
    Text,
    /// The codes of a picture.
    Image,
}

impl Stage {
    /// `text` or `image`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Text => "text",
            Stage::Image => "image",
        }
    }
}

/// The place of a draw. Everything counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Draw {
    pub stage: Stage,
    /// Which of the request's pictures; 0 for text.
    pub sequence: usize,
    /// The step within the stage, through all blocks.
    pub step: usize,
    /// The position within the answer, or the raster index within the picture.
    pub position: usize,
}

impl Draw {
    /// A draw for the only, or first, sequence.
    pub fn new(stage: Stage, step: usize, position: usize) -> Self {
        Draw { stage, sequence: 0, step, position }
    }
}

/// Where uniform random numbers come from. Implement it to replay recorded draws; [`Philox`] is the default.
///
/// A draw is asked for by its place, from several threads and in no particular order, and must be the same
/// whenever it is asked for again. Values lie in the open interval (0, 1).
pub trait Noise: Send + Sync {
    /// Text: the noise of the candidate `id` at a position (used when the temperature is above 0).
    fn token_uniform(&self, draw: Draw, id: u32) -> f64;
    /// Text: the confidence of a position under `random` remasking.
    fn order_uniform(&self, draw: Draw) -> f32;
    /// Image: the number that picks a position's code from the cumulative distribution.
    fn categorical_uniform(&self, draw: Draw) -> f64;
    /// Image: the noise in a position's confidence.
    fn gumbel_uniform(&self, draw: Draw) -> f32;

    /// The seed, where all draws are those of [`Philox`]: a graphics card makes them itself.
    fn philox(&self) -> Option<u64> {
        None
    }

    /// `token_uniform` of the ids `first, first + 1, ...`, one for each element of `out`.
    fn token_uniforms(&self, draw: Draw, first: u32, out: &mut [f64]) {
        for (u, id) in out.iter_mut().zip(first..) {
            *u = self.token_uniform(draw, id);
        }
    }
}

/// Philox 4x32-10. Sequence i of a request with seed s draws what sequence 0 of seed s + i (wrapping) draws, so
/// that each of several pictures can be had again alone.
///
/// Counter words, lowest first: the block within the draw (id / 2 for tokens, else 0), position, step, and the
/// purpose (1 token, 2 order, 3 categorical, 4 gumbel) plus 16 for images. The draws of a score have the purposes 32
/// (the offset) and 33 (the key of a position, whose step is the sample).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
}

const TOKEN: u32 = 1;
const ORDER: u32 = 2;
const CATEGORICAL: u32 = 3;
const GUMBEL: u32 = 4;
const OFFSET: u32 = 32;
const MASK: u32 = 33;

impl Philox {
    pub fn new(seed: u64) -> Self {
        Philox { seed }
    }

    /// Scores: a whole number below `end` (0 where `end` is), uniform up to one part in 2^64 / `end`.
    pub fn below(&self, end: usize) -> usize {
        let word = self.word64(0, 0, OFFSET);
        ((u128::from(word) * end as u128) >> 64) as usize
    }

    /// Scores: what the positions of an answer are sorted by to mask the first of them in a sample.
    pub fn order_key(&self, sample: usize, position: usize) -> u64 {
        self.word64(sample, position, MASK)
    }

    fn word64(&self, step: usize, position: usize, purpose: u32) -> u64 {
        let counter = [0, position as u32, step as u32, purpose].map(|word| [word]);
        let [[low], [high], ..] = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        u64::from(high) << 32 | u64::from(low)
    }

    fn key(&self, draw: Draw) -> [u32; 2] {
        let seed = self.seed.wrapping_add(draw.sequence as u64);
        [seed as u32, (seed >> 32) as u32]
    }

    fn counter(draw: Draw, purpose: u32) -> [u32; 4] {
        let stage = match draw.stage {
            Stage::Text => 0,
            Stage::Image => 16,
        };
        [0, draw.position as u32, draw.step as u32, stage + purpose]
    }

    fn words(&self, draw: Draw, purpose: u32) -> [u32; 4] {
        philox4x32_10(Self::counter(draw, purpose).map(|word| [word]), self.key(draw)).map(|[word]| word)
    }
}

impl Noise for Philox {
    fn philox(&self) -> Option<u64> {
        Some(self.seed)
    }

    fn token_uniform(&self, draw: Draw, id: u32) -> f64 {
        let mut out = [0.0];
        self.token_uniforms(draw, id, &mut out);
        out[0]
    }

    fn order_uniform(&self, draw: Draw) -> f32 {
        uniform_f32(self.words(draw, ORDER)[0])
    }

    fn categorical_uniform(&self, draw: Draw) -> f64 {
        let [a, b, ..] = self.words(draw, CATEGORICAL);
        uniform_f64(a, b)
    }

    fn gumbel_uniform(&self, draw: Draw) -> f32 {
        uniform_f32(self.words(draw, GUMBEL)[0])
    }

    /// A block of the generator serves two ids; eight blocks are computed side by side.
    fn token_uniforms(&self, draw: Draw, first: u32, out: &mut [f64]) {
        const BLOCKS: usize = 8;
        let key = self.key(draw);
        let counter = Self::counter(draw, TOKEN);
        let mut block = first / 2;
        let mut skip = (first % 2) as usize; // an odd first id begins in the middle of a block
        let mut out = out.iter_mut();
        while out.len() > 0 {
            let mut counters = counter.map(|word| [word; BLOCKS]);
            for (word, number) in counters[0].iter_mut().zip(0..) {
                *word = block.wrapping_add(number);
            }
            let [a, b, c, d] = philox4x32_10(counters, key);
            let pairs = (0..BLOCKS).flat_map(|i| [uniform_f64(a[i], b[i]), uniform_f64(c[i], d[i])]);
            for (u, slot) in pairs.skip(skip).zip(out.by_ref().take(2 * BLOCKS - skip)) {
                *slot = u;
            }
            skip = 0;
            block = block.wrapping_add(BLOCKS as u32);
        }
    }
}

/// `L` independent blocks at once: word w of block l is `counter[w][l]`.
#[inline(always)]
fn philox4x32_10<const L: usize>(counter: [[u32; L]; 4], key: [u32; 2]) -> [[u32; L]; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85]; // the golden ratio and sqrt(3) - 1, in 32 bits
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        for l in 0..L {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[l]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[l]);
            (c0[l], c1[l], c2[l], c3[l]) =
                ((p1 >> 32) as u32 ^ c1[l] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3[l] ^ k1, p0 as u32);
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// A multiple of 2^-53 below 1; 2^-54 stands for 0, so that its logarithm is finite.
#[inline(always)]
fn uniform_f64(high: u32, low: u32) -> f64 {
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    (bits as f64).max(0.5) * (1.0 / (1u64 << 53) as f64)
}

/// A multiple of 2^-24 below 1; 2^-25 stands for 0.
#[inline(always)]
fn uniform_f32(word: u32) -> f32 {
    ((word >> 8) as f32).max(0.5) * (1.0 / (1u32 << 24) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_scores_are_even_and_each_its_own() {
        let mut counts = [0; 7];
        (0..7000).for_each(|seed| counts[Philox::new(seed).below(7)] += 1);
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}"); // five standard errors
        assert_eq!((Philox::new(3).below(1), Philox::new(3).below(0)), (0, 0));
        let philox = Philox::new(u64::MAX);
        let mut keys: Vec<u64> = (0..40).flat_map(|s| (0..25).map(move |p| philox.order_key(s, p))).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 1000);
        let mean = keys.iter().map(|&k| k as f64 / u64::MAX as f64).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }

    /// The known answers that the generator's authors publish with Random123 (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn philox_gives_the_published_known_answers() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter.map(|word| [word]), key).map(|[word]| word), want);
            let lanes = philox4x32_10(counter.map(|word| [word; 8]), key);
            assert_eq!(lanes, want.map(|word| [word; 8]));
        }
    }

    #[test]
    fn uniforms_lie_in_the_open_interval_at_both_ends() {
        for u in [uniform_f64(0, 0), uniform_f64(u32::MAX, u32::MAX)] {
            assert!(u > 0.0 && u < 1.0);
        }
        for u in [uniform_f32(0), uniform_f32(u32::MAX)] {
            assert!(u > 0.0 && u < 1.0);
        }
        assert_eq!(uniform_f64(1 << 31, 0), 0.5);
        assert_eq!(uniform_f32(1 << 31), 0.5);
        assert_eq!(uniform_f64(u32::MAX, u32::MAX), 1.0 - f64::EPSILON / 2.0);
    }

    #[test]
    fn many_tokens_at_once_draw_what_each_draws_alone() {
        let noise = Philox::new(0x1234_5678_9abc_def0);
        let draw = Draw::new(Stage::Text, 3, 70_000);
        for first in [0, 1, 2, 15, 126_349] {
            for len in [0, 1, 2, 15, 16, 17, 100] {
                let mut many = vec![0.0; len];
                noise.token_uniforms(draw, first, &mut many);
                let alone: Vec<f64> = (first..).take(len).map(|id| noise.token_uniform(draw, id)).collect();
                assert_eq!(many, alone);
            }
        }
    }

    #[test]
    fn every_part_of_the_place_changes_the_draw() {
        let noise = Philox::new(9);
        let base = Draw { stage: Stage::Image, sequence: 0, step: 2, position: 5 };
        let others = [
            Draw { stage: Stage::Text, ..base },
            Draw { sequence: 1, ..base },
            Draw { step: 3, ..base },
            Draw { position: 6, ..base },
        ];
        for other in others {
            assert_ne!(noise.categorical_uniform(base), noise.categorical_uniform(other));
            assert_ne!(noise.gumbel_uniform(base), noise.gumbel_uniform(other));
            assert_ne!(noise.order_uniform(base), noise.order_uniform(other));
            assert_ne!(noise.token_uniform(base, 4), noise.token_uniform(other, 4));
        }
        assert_ne!(noise.order_uniform(base), noise.gumbel_uniform(base));
        assert_ne!(noise.token_uniform(base, 0), noise.categorical_uniform(base));
    }

    #[test]
    fn picture_i_of_a_seed_is_picture_0_of_the_seed_plus_i() {
        let draw = Draw::new(Stage::Image, 4, 17);
        for i in 0..5 {
            let several = Philox::new(u64::MAX - 2).gumbel_uniform(Draw { sequence: i, ..draw });
            let alone = Philox::new((u64::MAX - 2).wrapping_add(i as u64)).gumbel_uniform(draw);
            assert_eq!(several, alone);
        }
    }

    #[test]
    fn draws_are_spread_evenly() {
        let noise = Philox::new(77);
        let mut uniforms = vec![0.0; 40_000];
        noise.token_uniforms(Draw::new(Stage::Text, 0, 0), 0, &mut uniforms);
        let mean = uniforms.iter().sum::<f64>() / uniforms.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}"); // seven standard errors
        let mut tenths = [0; 10];
        uniforms.iter().for_each(|u| tenths[(u * 10.0) as usize] += 1);
        assert!(tenths.iter().all(|&n| (3700..4300).contains(&n)), "{tenths:?}");
    }
}
