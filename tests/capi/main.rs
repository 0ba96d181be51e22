//! The C interface: its header, its binary interface, its promises.
//!
//! The programs are C, built with the machine's C compiler against the shared library that cargo made for this test.
//! What an installed library does, and the examples of `bindings/c`, are checked by `scripts/test-packages`.

#[cfg(target_os = "linux")]
mod abi;
#[cfg(target_os = "linux")]
mod embedding;
mod header;
#[cfg(target_os = "linux")]
mod nulls;
mod parse;
#[cfg(target_os = "linux")]
mod promises;
#[cfg(target_os = "linux")]
mod sizes;
mod support;
#[cfg(target_os = "linux")]
mod values;
