//! From logits to tokens: pure functions, which know neither the model nor the prompt.
//!
//! `noise` draws the random numbers, `schedule` says how many image positions stay masked, `choose` finds the token that
//! a position of an answer would take, `text` says which of these are committed, `image` samples and re-masks the codes
//! of a picture.

pub mod choose;
pub mod image;
pub mod noise;
pub mod schedule;
pub mod text;

pub use self::image::Confidence;
pub use self::noise::{Draw, Noise, Philox, Stage};
pub use self::schedule::Schedule;
pub use self::text::Remasking;

use crate::error::Error;

/// Independent partial sums and maxima of one pass: enough for the widest vector registers, and always this
/// many, so that a sum has one order of additions on every machine.
const LANES: usize = 16;

/// The logits at `position` hold a NaN or an infinity, so nothing can be said about them.
fn not_finite(position: usize) -> Error {
    Error::Internal(format!("the logits at position {position} are not finite numbers (are the weights damaged?)"))
}

/// e^x for x <= 0, within 1e-15 of the exact value; below -708 it is 0.
///
/// Written out because a call of the C library stops the compiler from vectorizing a softmax, and differs in
/// its last bit from platform to platform. x = n ln 2 + r with |r| <= ln 2 / 2; e^r is its Taylor polynomial of
/// degree 13, whose remainder is below 5e-18.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const ROUND: f64 = 6755399441055744.0; // 1.5 * 2^52: adding it rounds to an integer held in the low bits
    const LN2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000); // ln 2 in 32 bits, so that n * LN2_HI is exact
    const LN2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76); // and what is missing
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5040.0,
        1.0 / 40320.0,
        1.0 / 362880.0,
        1.0 / 3628800.0,
        1.0 / 39916800.0,
        1.0 / 479001600.0,
        1.0 / 6227020800.0,
    ];
    let clamped = if x < -708.0 { -708.0 } else { x };
    let rounded = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = INVERSE_FACTORIALS[13];
    for i in (0..13).rev() {
        p = p * r + INVERSE_FACTORIALS[i];
    }
    let scale = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52); // 2^n
    if x < -708.0 { 0.0 } else { p * scale }
}

/// The largest value of `row`; NaN if there is one, -infinity if the row is empty.
#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            best[i] = if chunk[i] > best[i] { chunk[i] } else { best[i] };
            nan[i] |= chunk[i].is_nan();
        }
    }
    for (i, &x) in tail.iter().enumerate() {
        best[i] = if x > best[i] { x } else { best[i] };
        nan[i] |= x.is_nan();
    }
    if nan.contains(&true) { f32::NAN } else { best.into_iter().fold(f32::NEG_INFINITY, f32::max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let noise = Philox::new(11);
        for position in 0..20_000 {
            let x = -noise.categorical_uniform(Draw::new(Stage::Text, 0, position)) * 700.0;
            let (got, want) = (exp(x), x.exp());
            assert!((got - want).abs() <= 1e-15 * want, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-709.0), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn max_looks_at_every_element_and_reports_nan() {
        let noise = Philox::new(5);
        for len in 1..70 {
            let row: Vec<f32> = (0..len).map(|i| noise.gumbel_uniform(Draw::new(Stage::Image, len, i)) - 3.0).collect();
            assert_eq!(max(&row), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for i in 0..len {
                let mut row = row.clone();
                row[i] = 7.0;
                assert_eq!(max(&row), 7.0);
                row[i] = f32::NAN;
                assert!(max(&row).is_nan());
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
