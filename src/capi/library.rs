//! The library itself: its version, what it was built as, what it runs on.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use super::arguments::{Out, StructOut, Versioned, characters, init_zeroed, text};
use super::boundary::{guard, guard_value};
use super::buffer::{give_text, mmada_buffer};
use super::error::{Failure, mmada_error, mmada_status};
use crate::backend;

/// The version of the library that is running, such as "0.1.0" (MMADA_VERSION is that of the header). NUL-terminated,
/// valid for as long as the library is loaded. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mmada_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What the library was built as: version, platform, "release" or "debug", optional parts. NUL-terminated, valid for as
/// long as the library is loaded. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mmada_build_info() -> *const c_char {
    static TEXT: OnceLock<CString> = OnceLock::new();
    guard_value(c"".as_ptr(), || {
        Ok(TEXT.get_or_init(|| CString::new(backend::build_info().to_string()).unwrap_or_default()).as_ptr())
    })
}

/// A device that the library can run on. Set `struct_size`, or initialize with `mmada_device_info_init`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mmada_device_info {
    /// sizeof(mmada_device_info)
    pub struct_size: usize,
    /// Bytes of memory that it works in, free or not; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// The backend that runs it: "cpu" or "cuda". These texts are NUL-terminated UTF-8, cut where they do not fit.
    pub backend: [c_char; 16],
    /// What its maker calls it.
    pub name: [c_char; 128],
    /// The instruction sets that there are kernels for, the slowest first, with spaces between: what
    /// `mmada_context_options.instruction_set` takes. Empty for a graphics card.
    pub instruction_sets: [c_char; 96],
    /// What `mmada_context_options.device` takes: "cpu", "cuda:0".
    pub id: [c_char; 16],
    /// A graphics card's compute capability, such as 9 and 0; 0 and 0 for a processor.
    pub compute_capability_major: u32,
    pub compute_capability_minor: u32,
    /// One sentence that says why models do not run on it; empty where they do.
    pub refusal: [c_char; 256],
}

// SAFETY: no padding (tests/abi has the offsets), any bits are valid
unsafe impl Versioned for mmada_device_info {
    const NAME: &'static str = "mmada_device_info";
    const FIRST_SIZE: usize = 256;
}

/// Fills `*info`, which has `struct_size` bytes (pass sizeof), with zeros and its size.
///
/// Threads: any. Fails with MMADA_NULL_POINTER, or MMADA_STRUCT_SIZE for a size that no version has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_device_info_init(info: *mut mmada_device_info, struct_size: usize) -> mmada_status {
    // SAFETY: the header asks for room of `struct_size` bytes; zeros are a struct of numbers
    unsafe { init_zeroed(info, struct_size) }
}

/// How many devices this build of the library finds on this machine, over all backends: `*count`. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_device_count(count: *mut usize, error: *mut *mut mmada_error) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(count, "the count")?;
            out.put(backend::backends().iter().map(|b| b.devices.len()).sum());
            Ok(())
        })
    }
}

/// Fills `*info` with what device `index` is, counted from 0. Threads: any.
/// Fails with MMADA_NOT_FOUND beyond the last one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_device_get_info(
    index: usize,
    info: *mut mmada_device_info,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = StructOut::new(info)?;
            let backends = backend::backends();
            let mut devices = backends.iter().flat_map(|b| b.devices.iter().map(|d| (b.name, d)));
            let (backend, device) = devices.nth(index).ok_or_else(|| {
                Failure::new(mmada_status::MMADA_NOT_FOUND, format!("there is no device {index}, counted from 0"))
            })?;
            let capability = |part: fn((i32, i32)) -> i32| device.compute_capability.map_or(0, part).unsigned_abs();
            out.put(mmada_device_info {
                struct_size: 0,
                memory_bytes: device.memory_bytes,
                backend: characters(backend),
                name: characters(&device.name),
                instruction_sets: characters(&device.instruction_sets.join(" ")),
                id: characters(&device.id),
                compute_capability_major: capability(|(major, _)| major),
                compute_capability_minor: capability(|(_, minor)| minor),
                refusal: characters(device.refusal.as_deref().unwrap_or_default()),
            });
            Ok(())
        })
    }
}

/// Why a backend finds no devices on this machine: one sentence for a person, such as that there is no driver, or that
/// the library was built without the backend; NULL if it finds some. `backend` is "cpu" or "cuda"; `backend_length` may be MMADA_NUL_TERMINATED.
///
/// Owned by the caller on success: `*reason`, a text. Threads: any.
/// Fails with MMADA_NOT_FOUND for another name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_backend_unavailable(
    backend: *const c_char,
    backend_length: usize,
    reason: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(reason, "the reason")?;
            let name = text(backend, backend_length, "the backend")?;
            let found = backend::backends().into_iter().find(|b| b.name == name).ok_or_else(|| {
                let sentence = format!("there is no backend `{name}`");
                Failure::new(mmada_status::MMADA_NOT_FOUND, sentence)
            })?;
            give_text(out, found.unavailable)
        })
    }
}
