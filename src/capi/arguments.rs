//! Arguments from C: texts, arrays, structs of several versions, places for results.

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::path::Path;

use super::boundary::guard_status;
use super::error::{Failure, mmada_status};
use super::handle::{self, Object};
use crate::error::Error;
use crate::memory::{try_copy, try_string};

/// A length that says: up to the NUL. `MMADA_NUL_TERMINATED` of the header.
pub const NUL_TERMINATED: usize = usize::MAX;

/// A number of layers that says: as many as there is memory for. `MMADA_ALL_LAYERS` of the header.
pub const ALL_LAYERS: usize = usize::MAX;

/// The bytes of a text.
///
/// # Safety
/// `data` is null or points to `length` bytes, or to bytes that end with NUL if `length` is `SIZE_MAX`.
pub unsafe fn bytes<'a>(data: *const c_char, length: usize, what: &str) -> Result<&'a [u8], Failure> {
    if length == NUL_TERMINATED && !data.is_null() {
        // SAFETY: the caller's promise
        return Ok(unsafe { std::ffi::CStr::from_ptr(data) }.to_bytes());
    }
    // SAFETY: the caller's promise is the same
    unsafe { slice(data.cast(), length, what) }
}

/// A text, which stays the caller's.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn text<'a>(data: *const c_char, length: usize, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise is the same
    let bytes = unsafe { bytes(data, length, what)? };
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        Failure::new(mmada_status::MMADA_INVALID_UTF8, format!("{what} is not UTF-8: byte {at} begins no character"))
    })
}

/// A copy of a text.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn string(data: *const c_char, length: usize, what: &str) -> Result<String, Failure> {
    // SAFETY: the caller's promise is the same
    let text = unsafe { text(data, length, what)? };
    Ok(try_string(text, what)?)
}

/// An array, which stays the caller's; NULL is one of no elements.
///
/// # Safety
/// `data` is null or points to `count` elements that any bits are valid for and nobody changes meanwhile.
pub unsafe fn slice<'a, T: Copy>(data: *const T, count: usize, what: &str) -> Result<&'a [T], Failure> {
    match is_array(data, count, what)? {
        // SAFETY: not null, aligned, no larger than an object can be, and there by the caller's promise
        true => Ok(unsafe { std::slice::from_raw_parts(data, count) }),
        false => Ok(&[]),
    }
}

/// Whether there is an array: false for NULL of no elements. An error for what cannot be one.
fn is_array<T>(data: *const T, count: usize, what: &str) -> Result<bool, Failure> {
    if data.is_null() {
        return if count == 0 { Ok(false) } else { Err(Failure::null(what)) };
    }
    let invalid = |reason| Failure::new(mmada_status::MMADA_INVALID_ARGUMENT, format!("{what} {reason}"));
    if !data.is_aligned() {
        return Err(invalid("is not aligned".to_owned()));
    }
    match count.checked_mul(size_of::<T>()) {
        Some(size) if size <= isize::MAX as usize => Ok(true),
        _ => Err(invalid(format!("of {count} elements is larger than memory can be"))),
    }
}

/// A copy of an array.
///
/// # Safety
/// As [`slice`].
pub unsafe fn vec<T: Copy>(data: *const T, count: usize, what: &str) -> Result<Vec<T>, Failure> {
    // SAFETY: the caller's promise is the same
    Ok(try_copy(unsafe { slice(data, count, what)? }, what)?)
}

/// An array that is to be filled; NULL is one of no elements.
///
/// # Safety
/// `data` is null or has room for `count` elements, which any bits are valid for and nobody else uses meanwhile.
pub unsafe fn slice_mut<'a, T: Copy>(data: *mut T, count: usize, what: &str) -> Result<&'a mut [T], Failure> {
    if !is_array(data, count, what)? {
        return Ok(&mut []);
    }
    // SAFETY: as for `slice`; memory of the caller that was never written must not be referred to, so it is written first
    unsafe {
        data.write_bytes(0, count);
        Ok(std::slice::from_raw_parts_mut(data, count))
    }
}

/// A truth value: 0 or 1.
pub fn flag(value: u32, what: &str) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(unknown(what, value, "it must be 0 or 1")),
    }
}

/// An enum's number that is none of its names.
pub fn unknown(what: &str, value: u32, reason: &str) -> Failure {
    Failure::new(mmada_status::MMADA_INVALID_ARGUMENT, format!("{what} is {value}, {reason}"))
}

/// A place for a result, checked before the work and written after it.
pub struct Out<T> {
    place: *mut T,
}

impl<T> Out<T> {
    /// # Safety
    /// `place` is null or a place for a `T`, for as long as this lives.
    pub unsafe fn new(place: *mut T, what: &str) -> Result<Self, Failure> {
        match place.is_null() {
            true => Err(Failure::null(&format!("the place for {what}"))),
            false => Ok(Out { place }),
        }
    }

    pub fn put(self, value: T) {
        // SAFETY: by the promise to `new`
        unsafe { self.place.write_unaligned(value) }
    }
}

impl<H: Object> Out<*mut H> {
    /// Hands a new object to the caller.
    pub fn give(self, value: H::Value) {
        self.put(handle::new::<H>(value));
    }
}

/// A struct whose first field is its size, and which later versions append fields to.
///
/// # Safety
/// `repr(C)`, the first field is a `usize` (the size), no padding anywhere, any bits are valid.
pub unsafe trait Versioned: Copy {
    const NAME: &'static str;
    /// Its size in the first version of the library that had it.
    const FIRST_SIZE: usize;
}

/// The most that a later version's struct may have: a size beyond it is a mistake, and its bytes are not looked at.
const LARGEST: usize = 1 << 12;

/// The size that the caller's struct has.
///
/// # Safety
/// `from` is null or points to a struct of some version.
unsafe fn struct_size<S: Versioned>(from: *const S) -> Result<usize, Failure> {
    if from.is_null() {
        return Err(Failure::null(S::NAME));
    }
    // SAFETY: the size is the first field in every version
    checked_size::<S>(unsafe { from.cast::<usize>().read_unaligned() })
}

fn checked_size<S: Versioned>(size: usize) -> Result<usize, Failure> {
    let (first, name) = (S::FIRST_SIZE, S::NAME);
    match size {
        _ if (first..=LARGEST).contains(&size) && size.is_multiple_of(align_of::<usize>()) => Ok(size),
        _ => Err(Failure::new(
            mmada_status::MMADA_STRUCT_SIZE,
            format!(
                "{name}: struct_size is {size}, but this struct has {} bytes (was it initialized?)",
                size_of::<S>()
            ),
        )),
    }
}

/// The caller's struct; fields that its version does not have are those of `defaults`.
///
/// # Safety
/// `from` is null or points to a struct of some version.
pub unsafe fn read<S: Versioned>(from: *const S, defaults: S) -> Result<S, Failure> {
    // SAFETY: the caller's promise is the same
    let size = unsafe { struct_size(from)? };
    let known = size.min(size_of::<S>());
    // SAFETY: the caller's struct has `size` bytes
    let theirs = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
    if theirs[known..].iter().any(|&byte| byte != 0) {
        let sentence = format!("{}: an option is set that this version of the library does not know", S::NAME);
        return Err(Failure::new(mmada_status::MMADA_STRUCT_SIZE, sentence));
    }
    let mut ours = defaults;
    // SAFETY: `known` bytes are inside both, which do not overlap; any bits are valid in an `S`
    unsafe { std::ptr::copy_nonoverlapping(theirs.as_ptr(), (&raw mut ours).cast::<u8>(), known) };
    Ok(ours)
}

/// [`read`], or the defaults for NULL.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_or<S: Versioned>(from: *const S, defaults: S) -> Result<S, Failure> {
    if from.is_null() {
        return Ok(defaults);
    }
    // SAFETY: the caller's promise is the same
    unsafe { read(from, defaults) }
}

/// A place for a struct of the caller's version.
pub struct StructOut<S> {
    place: *mut S,
    size: usize,
}

impl<S: Versioned> StructOut<S> {
    /// For a struct that is to be filled; its size says which version it is.
    ///
    /// # Safety
    /// `place` is null or points to a struct of some version, for as long as this lives.
    pub unsafe fn new(place: *mut S) -> Result<Self, Failure> {
        // SAFETY: the caller's promise is the same
        let size = unsafe { struct_size(place.cast_const())? };
        Ok(StructOut { place, size })
    }

    /// For a struct that is to be initialized, of `size` bytes.
    ///
    /// # Safety
    /// `place` is null or has room for `size` bytes, for as long as this lives.
    pub unsafe fn uninitialized(place: *mut S, size: usize) -> Result<Self, Failure> {
        if place.is_null() {
            return Err(Failure::null(S::NAME));
        }
        Ok(StructOut { place, size: checked_size::<S>(size)? })
    }

    /// Writes the fields that the caller's version has, its own size first; fields that only it has become zero.
    pub fn put(self, value: S) {
        let known = self.size.min(size_of::<S>());
        let place = self.place.cast::<u8>();
        // SAFETY: by the promise to the constructors there are `size` bytes, and a struct without padding is all bytes
        unsafe {
            place.write_bytes(0, self.size);
            std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), place, known);
            self.place.cast::<usize>().write_unaligned(self.size);
        }
    }
}

/// What the `_init` of a struct does that the library only fills: zeros, and its size.
///
/// # Safety
/// `place` is null or has room for `size` bytes.
pub unsafe fn init_zeroed<S: Versioned>(place: *mut S, size: usize) -> mmada_status {
    // SAFETY: by the caller's promise; any bits are a value of the struct
    guard_status(|| unsafe {
        StructOut::uninitialized(place, size)?.put(std::mem::zeroed());
        Ok(())
    })
}

/// A file of its own for a descriptor that stays the caller's.
///
/// # Safety
/// `fd` is open, or no descriptor at all.
#[cfg(unix)]
pub unsafe fn file(fd: c_int, name: &str) -> Result<File, Failure> {
    use std::os::fd::BorrowedFd;
    if fd < 0 {
        return Err(Error::invalid(format!("{name}: {fd} is no file descriptor")).into());
    }
    // SAFETY: not negative; the system says so if it is not open
    let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
    Ok(copy.map_err(|e| Error::io(name, e))?.into())
}

#[cfg(not(unix))]
pub unsafe fn file(_: c_int, name: &str) -> Result<File, Failure> {
    Err(Error::unsupported(name, "files are opened by descriptor on Unix only").into())
}

/// The path of a file: on Unix any bytes, elsewhere UTF-8.
///
/// # Safety
/// As [`bytes`].
pub unsafe fn path<'a>(data: *const c_char, length: usize) -> Result<&'a Path, Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the caller's promise is the same
        Ok(Path::new(std::ffi::OsStr::from_bytes(unsafe { bytes(data, length, "the path")? })))
    }
    #[cfg(not(unix))]
    {
        // SAFETY: the caller's promise is the same
        Ok(Path::new(unsafe { text(data, length, "the path")? }))
    }
}

/// A text with a final NUL, cut between characters where it does not fit.
pub fn characters<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    let end = (0..N).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let text = if text.len() < N { text } else { &text[..end] };
    for (to, &byte) in out.iter_mut().zip(text.as_bytes()) {
        *to = byte as c_char;
    }
    out
}
