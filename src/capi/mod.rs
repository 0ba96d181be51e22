//! The C interface: one function per symbol, no logic. `include/mmada.h` is generated from these files (cbindgen.toml
//! has its beginning, tests/capi.rs the order), so their comments are written for callers in C.
//!
//! Every function goes through `boundary` (panics become a status), looks at its pointers through `arguments` and
//! `handle`, and calls the Rust API. Structs begin with their size and only ever grow at the end; enums arrive as
//! plain numbers, because a Rust enum must not hold any other. All promises that `unsafe` blocks rely on are those
//! that the header asks of its callers: a pointer is NULL or points to what its type and the comment say.
#![allow(non_camel_case_types)]
#![allow(clippy::too_many_arguments)] // C has no other way

const _: () = assert!(size_of::<usize>() == 8, "the structs of the C interface are laid out for 64-bit systems");

mod arguments;
mod boundary;
mod buffer;
mod canceller;
mod context;
mod error;
mod generation;
mod handle;
#[cfg(debug_assertions)]
mod hooks;
mod image;
mod library;
mod model;
mod options;
