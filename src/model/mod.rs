//! The backbone: a bidirectional LLaDA transformer that predicts masked tokens (arXiv 2502.09992, 2505.15809).

mod config;
mod state;
mod transformer;
mod weights;

pub use config::Config;
pub use state::State;
pub use transformer::{InputObserver, LayerObserver, MatrixInput, Observers, Run, SequenceRequest, Transformer};
pub use weights::{TensorRef, Weights, is_backbone};

/// How products with F32, F16 and BF16 weights are computed. Quantized weights always take int8 activations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compute {
    /// 8- and 16-bit products are allowed wherever they do not change answers noticeably.
    #[default]
    Fast,
    /// Float weights meet f32 activations in f32 arithmetic.
    Exact,
}
