//! The backbone: a bidirectional LLaDA transformer that predicts masked tokens (arXiv 2502.09992, 2505.15809).

mod backend;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod layout;
#[cfg(feature = "cuda")]
mod offload;
mod packed;
mod state;
mod transformer;
mod weights;

#[cfg(feature = "cuda")]
pub(crate) use backend::{Backend, Buffer, Source};
pub use config::Config;
#[cfg(feature = "cuda")]
pub(crate) use cpu::Cpu;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{Cuda, CudaState, CudaWeights};
#[cfg(feature = "cuda")]
pub(crate) use offload::Offload;
pub use packed::PackedWeights;
pub(crate) use packed::WHAT as PACKED;
pub use state::{Room, State};
#[cfg(feature = "cuda")]
pub(crate) use transformer::parts_of;
pub use transformer::{
    InputObserver, LayerObserver, LogitVisitor, Logits, MatrixInput, Observers, Parts, Run, SequenceRequest,
    Transformer,
};
pub use weights::{TensorRef, Weights, is_backbone};

/// How products are computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compute {
    /// As fast as the processor can without changing answers noticeably: float weights and those of more than four bits
    /// may meet activations in bfloat16, those of up to four bits may be quantized to int8 once more on the way.
    #[default]
    Fast,
    /// Float weights meet f32 activations in f32 arithmetic, quantized ones int8 activations with the scales of their
    /// blocks. Gives the same on every processor, up to the rounding of fused multiply-adds.
    Exact,
}
