//! What functions return that has no fixed size: text, ids, bytes.

use std::ffi::c_char;
use std::ptr;

use super::arguments::Out;
use super::boundary::guard_value;
use super::error::Failure;
use super::handle::{self, Object};
use crate::error::Error;

/// A text, an array of ids, or bytes, owned by whoever received it. A function that has nothing to return gives NULL,
/// which all functions here take for an empty buffer.
pub struct mmada_buffer {
    _opaque: [u8; 0],
}

pub enum Buffer {
    /// UTF-8 and a final NUL.
    Text(Vec<u8>),
    Ids(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Object for mmada_buffer {
    type Value = Buffer;
    const MAGIC: u64 = handle::magic(b"buffer");
    const NAME: &'static str = "buffer";
}

impl Buffer {
    pub fn text(text: impl Into<Vec<u8>>) -> Result<Self, Failure> {
        let mut bytes = text.into();
        let what = "a text".to_owned();
        bytes.try_reserve_exact(1).map_err(|_| Error::OutOfMemory { what, bytes: bytes.len() + 1 })?;
        bytes.push(0);
        Ok(Buffer::Text(bytes))
    }
}

/// Hands a text to the caller; NULL for none.
pub fn give_text(out: Out<*mut mmada_buffer>, text: Option<String>) -> Result<(), Failure> {
    match text {
        Some(text) => out.give(Buffer::text(text)?),
        None => out.put(ptr::null_mut()),
    }
    Ok(())
}

/// How many elements a buffer has: bytes of a text without its final NUL, ids, or bytes. 0 for NULL. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_buffer_length(buffer: *const mmada_buffer) -> usize {
    guard_value(0, || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(match unsafe { handle::get(buffer) }? {
            Buffer::Text(text) => text.len() - 1,
            Buffer::Ids(ids) => ids.len(),
            Buffer::Bytes(bytes) => bytes.len(),
        })
    })
}

/// The text of a buffer: UTF-8, with a NUL after its `mmada_buffer_length` bytes (a model may write a NUL inside, too).
/// Borrowed: valid until the buffer is freed. NULL for NULL and for a buffer that is no text. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_buffer_text(buffer: *const mmada_buffer) -> *const c_char {
    guard_value(ptr::null(), || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(match unsafe { handle::get(buffer) }? {
            Buffer::Text(text) => text.as_ptr().cast(),
            _ => ptr::null(),
        })
    })
}

/// The ids of a buffer, `mmada_buffer_length` of them. Borrowed: valid until the buffer is freed. NULL for NULL and for
/// a buffer that holds no ids. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_buffer_ids(buffer: *const mmada_buffer) -> *const u32 {
    guard_value(ptr::null(), || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(match unsafe { handle::get(buffer) }? {
            Buffer::Ids(ids) => ids.as_ptr(),
            _ => ptr::null(),
        })
    })
}

/// The bytes of a buffer, `mmada_buffer_length` of them. Borrowed: valid until the buffer is freed. NULL for NULL and
/// for a buffer that holds no bytes. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_buffer_bytes(buffer: *const mmada_buffer) -> *const u8 {
    guard_value(ptr::null(), || {
        // SAFETY: NULL or a handle, as for every function of the interface
        Ok(match unsafe { handle::get(buffer) }? {
            Buffer::Bytes(bytes) => bytes.as_ptr(),
            _ => ptr::null(),
        })
    })
}

/// Frees a buffer. NULL is harmless. Threads: any, once nothing reads what it holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_buffer_free(buffer: *mut mmada_buffer) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(buffer) }
}
