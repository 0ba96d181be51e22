//! Pictures.

use std::ffi::c_char;
use std::ptr;

use super::arguments::{self, Out, slice, unknown};
use super::boundary::{guard, guard_value};
use super::buffer::{Buffer, mmada_buffer};
use super::error::{Failure, mmada_error, mmada_status};
use super::handle::{self, Object};

use crate::image::{self, RgbImage};

/// A picture of 8-bit RGB pixels that does not change once it is made. Owned by whoever received it; free it with
/// `mmada_image_free`. Any number of threads may use one at once.
pub struct mmada_image {
    _opaque: [u8; 0],
}

impl Object for mmada_image {
    type Value = RgbImage;
    const MAGIC: u64 = handle::magic(b"image");
    const NAME: &'static str = "image";
}

/// Formats that pictures are encoded in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum mmada_image_format {
    MMADA_IMAGE_PNG = 0,
    /// Quality 95 of 100.
    MMADA_IMAGE_JPEG = 1,
}

/// A picture of the caller's pixels, which are copied: `height` rows of `width` times three bytes, red, green, blue,
/// from the top left. `stride` is the distance of two rows in bytes; 0 for `3 * width`.
///
/// Owned by the caller on success: `*image`. Threads: any.
/// Fails with MMADA_BAD_IMAGE for a side of 0 or above 16384, MMADA_INVALID_ARGUMENT for a stride below `3 * width`,
/// MMADA_OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_from_rgb(
    pixels: *const u8,
    width: usize,
    height: usize,
    stride: usize,
    image: *mut *mut mmada_image,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(image, "the image")?;
            let stride = if stride == 0 { width.saturating_mul(3) } else { stride };
            let length = image::rgb_length(width, height, stride)?;
            if pixels.is_null() {
                return Err(Failure::null("pixels"));
            }
            out.give(image::from_rgb(slice(pixels, length, "pixels")?, width, height, stride)?);
            Ok(())
        })
    }
}

/// Reads a PNG, JPEG or GIF (its first frame) file. `path_length` may be MMADA_NUL_TERMINATED.
///
/// Owned by the caller on success: `*image`. Threads: any.
/// Fails with MMADA_IO_ERROR, or MMADA_BAD_IMAGE for what is no such picture, damaged, or larger than 16384 pixels a
/// side or 512 MiB decoded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_load(
    path: *const c_char,
    path_length: usize,
    image: *mut *mut mmada_image,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(image, "the image")?;
            out.give(image::open(arguments::path(path, path_length)?)?);
            Ok(())
        })
    }
}

/// Decodes the `size` bytes of a PNG, JPEG or GIF (its first frame) file in memory, which are read during the call only.
///
/// Owned by the caller on success: `*image`. Threads: any. Fails as `mmada_image_load`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_decode(
    data: *const u8,
    size: usize,
    image: *mut *mut mmada_image,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(image, "the image")?;
            if data.is_null() {
                return Err(Failure::null("data"));
            }
            out.give(image::decode(slice(data, size, "data")?, "the picture")?);
            Ok(())
        })
    }
}

/// Writes a picture to a file whose name ends in .png, .jpg or .jpeg. The file appears whole or not at all, in the
/// place of an existing one. `path_length` may be MMADA_NUL_TERMINATED.
///
/// Threads: any. Fails with MMADA_IO_ERROR, or MMADA_INVALID_ARGUMENT for another ending or a missing folder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_save(
    image: *const mmada_image,
    path: *const c_char,
    path_length: usize,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let picture = handle::get(image)?;
            Ok(image::save(picture, arguments::path(path, path_length)?)?)
        })
    }
}

/// Encodes a picture as the bytes of a file, `format` being an mmada_image_format.
///
/// Owned by the caller on success: `*file`, a buffer of bytes. Threads: any.
/// Fails with MMADA_INVALID_ARGUMENT for another format.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_encode(
    image: *const mmada_image,
    format: u32,
    file: *mut *mut mmada_buffer,
    error: *mut *mut mmada_error,
) -> mmada_status {
    // SAFETY: the promises are the header's
    unsafe {
        guard(error, || {
            let out = Out::new(file, "the file's bytes")?;
            let picture = handle::get(image)?;
            out.give(Buffer::Bytes(match format {
                v if v == mmada_image_format::MMADA_IMAGE_PNG as u32 => image::encode_png(picture)?,
                v if v == mmada_image_format::MMADA_IMAGE_JPEG as u32 => image::encode_jpeg(picture)?,
                v => return Err(unknown("format", v, "which is no mmada_image_format")),
            }));
            Ok(())
        })
    }
}

/// Pixels in a row; 0 for NULL. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_width(image: *const mmada_image) -> usize {
    // SAFETY: NULL or a handle, as for every function of the interface
    guard_value(0, || Ok(unsafe { handle::get(image) }?.width() as usize))
}

/// Rows of pixels; 0 for NULL. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_height(image: *const mmada_image) -> usize {
    // SAFETY: NULL or a handle, as for every function of the interface
    guard_value(0, || Ok(unsafe { handle::get(image) }?.height() as usize))
}

/// The pixels, [height, width, 3] without gaps: red, green, blue from the top left. Borrowed: valid until the image is
/// freed. NULL for NULL. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_pixels(image: *const mmada_image) -> *const u8 {
    // SAFETY: NULL or a handle, as for every function of the interface
    guard_value(ptr::null(), || Ok(unsafe { handle::get(image) }?.as_raw().as_ptr()))
}

/// Frees a picture. NULL is harmless. A generation that was begun with it keeps a copy. Threads: any, once nothing uses
/// the picture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmada_image_free(image: *mut mmada_image) {
    // SAFETY: NULL or a handle, as for every function of the interface
    unsafe { handle::free(image) }
}
