//! stub
mod font;
pub mod metrics;
pub mod plot;
pub mod summary;
