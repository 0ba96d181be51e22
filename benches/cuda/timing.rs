//! Clocks, lines, and what sections share.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mmada::kernels::cuda::{Gpu, Memory, Queue, image_check, self_check};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

pub const WHAT: &str = "a bench";

/// What went wrong, which does not keep the rest from being measured.
#[derive(Default)]
pub struct Failures(bool);

impl Failures {
    pub fn note(&mut self, what: &str, outcome: Outcome<()>) {
        if let Err(error) = outcome {
            println!("error: {what}: {error}");
            self.0 = true;
        }
    }

    pub fn any(&self) -> bool {
        self.0
    }
}

pub fn line(what: &str, number: f64, unit: &str) {
    println!("{what}\t{number:.6}\t{unit}");
}

/// Compares kernels with the processor's, as a context does before it trusts a card, and says which were right.
pub fn check(gpu: &Arc<Gpu>, pictures: bool) -> Outcome<()> {
    let mut left_alone = None;
    for dim in [64, 128] {
        left_alone = left_alone.or(self_check(gpu, dim)?);
    }
    if !pictures {
        return Ok(());
    }
    image_check(&Queue::new(gpu)?)?;
    let hopper = [gpu.has_hopper(), gpu.has_hopper_attention(64), gpu.has_hopper_attention(128)];
    if gpu.card().compute_capability == (9, 0) {
        let right = hopper.iter().filter(|is_right| **is_right).count();
        line("groups of kernels for Hopper that are right", right as f64, "of 3");
    }
    // a context would go on without them; here they are what is to be seen
    left_alone.map_or(Ok(()), |sentence| Err(sentence.into()))
}

/// Seconds of one of many that `work` queues.
pub fn best(quick: bool, queue: &Queue, mut work: impl FnMut() -> mmada::Result<()>) -> Outcome<f64> {
    const ROUNDS: usize = 5;
    /// Of a round, so that a wait at its end hardly counts.
    const SECONDS: f64 = 0.01;
    // a card's clocks are low until it has had something to do
    const WARM: Duration = Duration::from_millis(20);
    let start = Instant::now();
    loop {
        work()?;
        queue.wait()?;
        if quick || start.elapsed() > WARM {
            break;
        }
    }
    let (mut best, mut count) = (f64::INFINITY, 1);
    for _ in 0..if quick { 1 } else { ROUNDS } {
        let start = Instant::now();
        for _ in 0..count {
            work()?;
        }
        queue.wait()?;
        best = best.min(start.elapsed().as_secs_f64() / f64::from(count));
        count = ((SECONDS / best) as u32).clamp(1, 1000);
    }
    Ok(best)
}

/// A range of numbers in [-1, 1), always the same, without a pattern: a card takes less power for one, and is faster.
pub fn floats(range: Range<usize>) -> Vec<f32> {
    let hash = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) ^ (i as u32 >> 15).wrapping_mul(0x85eb_ca6b);
    let mix = |z: u32| (z ^ z >> 16).wrapping_mul(0x7feb_352d);
    range.map(|i| (mix(hash(i)) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

pub fn upload<T: bytemuck::Pod>(queue: &Queue, from: &[T]) -> Outcome<Memory<T>> {
    Ok(queue.upload(from, WHAT)?)
}
