//! The library computes what the reference implementation computed: checkpoints in the published layout are converted
//! to f32 as users convert, and everything that a fixture folder states is compared, number by number.
//!
//! The folders are `tiny`, `mmada-shapes` and `grouped` in `tests/golden`, and those that the environment variable
//! `MMADA_GOLDEN` names (separated as in `PATH`). What a folder does not hold is skipped, and a line on standard error
//! says so. `tests/golden/README.md` says what the files mean.

mod golden_support;
