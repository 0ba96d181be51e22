//! Handles: boxes with a number at their head that says what they are, and that they have not been freed.

use super::boundary::guard_status;
use super::error::{Failure, mmada_status};

/// An opaque type of the header, and what it stands for.
pub trait Object {
    type Value;
    /// At the head of every live handle of this type.
    const MAGIC: u64;
    /// For errors.
    const NAME: &'static str;
}

#[repr(C)]
struct Handle<T> {
    magic: u64,
    value: T,
}

/// Left at the head of a freed handle, as long as the allocator leaves the memory alone.
const FREED: u64 = magic(b"freed");

/// "mmada" and the first letters of a name do not fit in 64 bits together: FNV-1a, whose values are unlikely pointers.
pub const fn magic(name: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash | 1 // odd, so that it is no address of anything aligned
}

/// A handle that the caller of the interface owns.
pub fn new<H: Object>(value: H::Value) -> *mut H {
    Box::into_raw(Box::new(Handle { magic: H::MAGIC, value })).cast()
}

/// What a handle stands for. An error for NULL, for another type's handle, and for a freed one where it can be told.
///
/// # Safety
/// `handle` is null, or made by [`new`], and not freed while the result is used. (For anything else the check of the
/// number is the best that can be done.)
pub unsafe fn get<'a, H: Object>(handle: *const H) -> Result<&'a H::Value, Failure> {
    // SAFETY: the caller's promise is the same
    unsafe { check(handle)? };
    // SAFETY: it is what `new` made; references to the value are only ever shared
    Ok(unsafe { &(*handle.cast::<Handle<H::Value>>()).value })
}

/// [`get`] of a handle that may be NULL.
///
/// # Safety
/// As [`get`].
pub unsafe fn optional<'a, H: Object>(handle: *const H) -> Result<Option<&'a H::Value>, Failure> {
    if handle.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise is the same
    unsafe { get(handle) }.map(Some)
}

/// [`get`] that neither allocates nor locks, for signal handlers.
///
/// # Safety
/// As [`get`].
pub unsafe fn peek<'a, H: Object>(handle: *const H) -> Result<&'a H::Value, mmada_status> {
    let handle = handle.cast::<Handle<H::Value>>();
    match handle.is_null() {
        true => Err(mmada_status::MMADA_NULL_POINTER),
        // SAFETY: the caller's promise is that of `get`
        false if handle.is_aligned() && unsafe { number(handle) } == H::MAGIC => Ok(unsafe { &(*handle).value }),
        false => Err(mmada_status::MMADA_INVALID_HANDLE),
    }
}

/// Destroys a handle. Nothing happens for NULL, another type's handle, and a freed one where it can be told.
///
/// # Safety
/// As [`get`], and nothing uses it any more.
pub unsafe fn free<H: Object>(handle: *mut H) {
    guard_status(|| {
        // SAFETY: the caller's promise is the same
        unsafe { check(handle.cast_const())? };
        let handle = handle.cast::<Handle<H::Value>>();
        // SAFETY: it is what `new` made and not yet freed, so this is its one owner. The write is volatile
        // because the compiler sees nobody who could read it.
        drop(unsafe {
            (&raw mut (*handle).magic).write_volatile(FREED);
            Box::from_raw(handle)
        });
        Ok(())
    });
}

unsafe fn check<H: Object>(handle: *const H) -> Result<(), Failure> {
    let handle = handle.cast::<Handle<H::Value>>();
    if handle.is_null() {
        return Err(Failure::null(&format!("the {}", H::NAME)));
    }
    let invalid =
        |reason: &str| Err(Failure::new(mmada_status::MMADA_INVALID_HANDLE, format!("the {} is {reason}", H::NAME)));
    if !handle.is_aligned() {
        return invalid("not a handle");
    }
    // SAFETY: the caller's promise
    match unsafe { number(handle) } {
        found if found == H::MAGIC => Ok(()),
        FREED => invalid("used after it was freed"),
        _ => invalid("not a handle of this type, or was freed"),
    }
}

/// # Safety
/// Not null, aligned, and a handle of any type, at whose head the number is.
unsafe fn number<T>(handle: *const Handle<T>) -> u64 {
    // SAFETY: the caller's promise; volatile because the memory may have been freed
    unsafe { (&raw const (*handle).magic).read_volatile() }
}
