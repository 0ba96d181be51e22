//! Masking schedules: the share of an image's positions that stays masked after a step (MaskGIT, arXiv 2202.04200).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// m(r), from (nearly) 1 at r = 0 to (nearly) 0 at r = 1, r being the share of the steps that is done.
///
/// Written and parsed as `cosine`, `linear`, `pow2` (any power above 0: `pow0.5`, ...) and `sigmoid`.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Schedule {
    /// cos(r pi / 2)
    #[default]
    Cosine,
    /// 1 - r
    Linear,
    /// 1 - r^P
    Pow(f32),
    /// The logistic function between -3 and 3, turned over and stretched to reach from 1 to 0.
    Sigmoid,
}

/// What linear, power and sigmoid schedules do not fall below.
const FLOOR: f32 = 1e-6;

impl Schedule {
    /// m(r). Every operation is rounded to f32 in the order of the formula, because [`Schedule::masked`] cuts
    /// the product with N to an integer, and one ulp decides. Transcendental functions are computed in f64 and
    /// then rounded, which gives the same f32 on every platform.
    fn ratio(self, r: f32) -> f32 {
        match self {
            Schedule::Cosine => f64::from((std::f32::consts::PI * r) * 0.5).cos() as f32,
            Schedule::Linear => (1.0 - r).clamp(FLOOR, 1.0),
            Schedule::Pow(power) => (1.0 - f64::from(r).powf(f64::from(power)) as f32).clamp(FLOOR, 1.0),
            Schedule::Sigmoid => {
                let (start, end) = (logistic(-3.0), logistic(3.0));
                ((end - logistic(r * 6.0 - 3.0)) / (end - start)).clamp(FLOOR, 1.0)
            }
        }
    }

    /// floor(N m((t + 1) / steps)) for step t counted from 0: how many of `tokens` positions the schedule would
    /// leave masked, before the limits that the image sampler sets. The cosine's last value is -1, since cos of
    /// the f32 nearest to pi / 2 is negative.
    pub fn masked(self, tokens: usize, step: usize, steps: usize) -> i64 {
        let r = (step as f32 + 1.0) / steps as f32;
        (tokens as f32 * self.ratio(r)).floor() as i64
    }
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + f64::from(-x).exp() as f32)
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let unknown = || {
            Error::invalid(format!(
                "schedule {name:?} is unknown: use cosine, linear, sigmoid or pow followed by a power above 0, as in pow2"
            ))
        };
        match name {
            "cosine" => Ok(Schedule::Cosine),
            "linear" => Ok(Schedule::Linear),
            "sigmoid" => Ok(Schedule::Sigmoid),
            _ => {
                let power: f32 = name.strip_prefix("pow").ok_or_else(unknown)?.parse().map_err(|_| unknown())?;
                let schedule = Schedule::Pow(power);
                schedule.check().map_err(|_| unknown())?;
                Ok(schedule)
            }
        }
    }
}

impl Schedule {
    /// An error if this is a power that is not a finite number above 0.
    pub fn check(self) -> Result<()> {
        match self {
            Schedule::Pow(power) if !(power > 0.0 && power.is_finite()) => {
                Err(Error::invalid(format!("the schedule's power is {power}, it must be a finite number above 0")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Cosine => f.write_str("cosine"),
            Schedule::Linear => f.write_str("linear"),
            Schedule::Pow(power) => write!(f, "pow{power}"),
            Schedule::Sigmoid => f.write_str("sigmoid"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        schedule: String,
        tokens: usize,
        steps: usize,
        masked: Vec<i64>,
    }

    #[test]
    fn schedules_meet_the_golden_counts() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/schedule_cases.json"));
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let schedule: Schedule = case.schedule.parse().unwrap();
            let masked: Vec<i64> = (0..case.steps).map(|t| schedule.masked(case.tokens, t, case.steps)).collect();
            assert_eq!(masked, case.masked, "{} of {} in {} steps", case.schedule, case.tokens, case.steps);
        }
    }

    #[test]
    fn f32_rounding_decides_the_floor() {
        assert_eq!(Schedule::Cosine.masked(16, 1, 3), 7); // 16 cos(pi / 3) is 8 in exact arithmetic
        assert_eq!(Schedule::Cosine.masked(16, 2, 3), -1);
        assert_eq!(Schedule::Linear.masked(4096, 9, 10), 0); // 4096e-6 of a position
    }

    #[test]
    fn every_schedule_falls_from_one_step_to_the_next() {
        for schedule in
            ["cosine", "linear", "sigmoid", "pow2", "pow0.5", "pow3.25"].map(|s| s.parse::<Schedule>().unwrap())
        {
            for steps in [1, 2, 7, 50, 1000] {
                let counts: Vec<i64> = (0..steps).map(|t| schedule.masked(1024, t, steps)).collect();
                assert!(counts.is_sorted_by(|a, b| a >= b), "{schedule} in {steps} steps: {counts:?}");
                assert!(counts.iter().all(|&n| (-1..=1024).contains(&n)));
                assert!(counts.last().is_some_and(|&n| n <= 0));
            }
        }
    }

    #[test]
    fn names_are_read_back_as_written_and_others_are_refused() {
        for name in ["cosine", "linear", "sigmoid", "pow2", "pow0.5"] {
            assert_eq!(name.parse::<Schedule>().unwrap().to_string(), name);
        }
        for name in ["", "cos", "Cosine", "pow", "pow0", "pow-1", "powNaN", "powinf", "pow2x", "sigmoid "] {
            let error = name.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }
}
