//! The uniform numbers that the reference run drew, in place of our own.

use mmada::sampler::{Draw, Noise, Stage};

use super::fixture::Fixture;
use super::tensors::Tensor;

/// Recorded draws of one case. Asking for one that was not recorded fails the test.
#[derive(Default)]
pub struct Recorded {
    /// [steps, positions, vocabulary]
    tokens: Option<Tensor<f64>>,
    /// [steps, positions]
    order: Option<Tensor<f32>>,
    categorical: Option<Tensor<f64>>,
    gumbel: Option<Tensor<f32>>,
}

impl Recorded {
    /// The draws that a folder holds for a case such as `noisy.0`.
    pub fn of(fixture: &Fixture, case: &str) -> Self {
        let Some(expected) = &fixture.expected else { return Recorded::default() };
        Recorded {
            tokens: expected.f64s(&format!("{case}.token_uniforms")),
            order: expected.f32s(&format!("{case}.order_uniforms")),
            categorical: expected.f64s(&format!("{case}.categorical_uniforms")),
            gumbel: expected.f32s(&format!("{case}.gumbel_uniforms")),
        }
    }

    /// Positions of the image.
    pub fn image_tokens(&self) -> Option<usize> {
        self.categorical.as_ref().map(|t| t.shape[1])
    }
}

fn at<T: Copy>(tensor: &Option<Tensor<T>>, what: &str, stage: Stage, draw: Draw, id: u32) -> T {
    assert_eq!((draw.stage, draw.sequence), (stage, 0), "{what} was drawn for another place");
    let tensor = tensor.as_ref().unwrap_or_else(|| panic!("a {what} was drawn, the reference drew none"));
    let row = tensor.at(draw.step);
    row[row.len() / tensor.shape[1] * draw.position + id as usize]
}

impl Noise for Recorded {
    fn token_uniform(&self, draw: Draw, id: u32) -> f64 {
        at(&self.tokens, "token uniform", Stage::Text, draw, id)
    }
    fn order_uniform(&self, draw: Draw) -> f32 {
        at(&self.order, "order uniform", Stage::Text, draw, 0)
    }
    fn categorical_uniform(&self, draw: Draw) -> f64 {
        at(&self.categorical, "categorical uniform", Stage::Image, draw, 0)
    }
    fn gumbel_uniform(&self, draw: Draw) -> f32 {
        at(&self.gumbel, "gumbel uniform", Stage::Image, draw, 0)
    }
}
