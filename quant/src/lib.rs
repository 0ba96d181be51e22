//! Checkpoints to GGUF.
