//! What the golden tests share, and a module of tests per part of the pipeline.

pub mod api;
pub mod cases;
pub mod compare;
pub mod fixture;
pub mod noise;
pub mod tensors;

mod drawing;
mod forward;
mod pictures;
mod prompts;
mod text;
