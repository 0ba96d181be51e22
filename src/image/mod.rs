//! Pictures in and out: PNG, JPEG and GIF files to RGB pixels within limits, RGB pixels to a file, and the way
//! from any picture to the square that the image tokenizer reads (`resize`).
#![forbid(unsafe_code)]

mod jpeg;
mod resize;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::png::PngEncoder;
use ::image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader, Limits,
};

pub use ::image::RgbImage;
pub use resize::{Fit, bicubic, fit};

use crate::error::{Error, Result};
use crate::memory::{Growing, try_copy, try_with_capacity};

/// Longest side of a picture that is decoded, in pixels.
pub const MAX_SIDE: u32 = 16384;
/// Most bytes that a decoded picture may take.
pub const MAX_DECODED_BYTES: u64 = 512 << 20;
/// More than a decoder takes before the size of the picture is known: windows and tables.
const DECODER_BYTES: usize = 1 << 20;
/// Most bytes of a picture file.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// Quality of JPEG files written, 1 to 100.
const JPEG_QUALITY: u8 = 95;

/// Reads and decodes a picture file; see [`decode`].
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let name = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(name, e))?;
    // A bound on what is read, not on what the directory says: the path may be a pipe or a device.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path.display(), e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::image(path.display(), format!("the file is larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    decode(&bytes, &path.display().to_string())
}

/// Decodes a PNG, JPEG or GIF (its first frame) to 8-bit RGB: alpha is dropped, gray repeated, 16 bits are
/// reduced to 8, and the orientation that a camera wrote into EXIF is applied. `name` stands in errors.
///
/// # Errors
/// `Error::Image` when the bytes are no such picture, are damaged or cut off, hold no pixels, or would decode to
/// more than [`MAX_SIDE`] pixels a side or [`MAX_DECODED_BYTES`]; `OutOfMemory` where there is none for its pixels.
pub fn decode(bytes: &[u8], name: &str) -> Result<RgbImage> {
    let bad = |e: ImageError| Error::image(name, reason(&e));
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::image(name, format!("cannot be read as a picture: {e}")))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Gif) => {}
        Some(ImageFormat::Jpeg) => jpeg::check_complete(bytes).map_err(|reason| Error::image(name, reason))?,
        Some(other) => {
            let is = other.extensions_str().first().copied().unwrap_or("another").to_uppercase();
            return Err(Error::image(name, format!("is a {is} picture, only PNG, JPEG and GIF are read")));
        }
        None => return Err(Error::image(name, "is not a picture in PNG, JPEG or GIF format")),
    }
    // The decoders do not survive being refused memory: what they begin with is asked for here, the pixels below.
    drop(try_with_capacity::<u8>(DECODER_BYTES, &format!("decoding {name}"))?);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::image(name, format!("has no pixels ({width}x{height})")));
    }
    // The reader's own limit does not count the final buffer for every format.
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(Error::image(name, too_large(&format!("decodes to {} bytes", decoder.total_bytes()))));
    }
    let pixels = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    let rgb = (width as usize).saturating_mul(height as usize).saturating_mul(3);
    drop(try_with_capacity::<u8>(pixels.saturating_add(rgb), &format!("decoding {name}"))?);
    let orientation = decoder.orientation().map_err(bad)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(bad)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn reason(e: &ImageError) -> String {
    match e {
        ImageError::Limits(_) => too_large("exceeds the limits"),
        e => format!("cannot be decoded: {e}"),
    }
}

fn too_large(what: &str) -> String {
    let mib = MAX_DECODED_BYTES >> 20;
    format!("{what}; pictures of at most {MAX_SIDE}x{MAX_SIDE} pixels and {mib} MiB decoded are read")
}

/// `image` as the bytes of a PNG file.
///
/// # Errors
/// `Image` for a picture without pixels; `OutOfMemory`.
pub fn encode_png(image: &RgbImage) -> Result<Vec<u8>> {
    encode_bytes(image, Format::Png)
}

/// `image` as the bytes of a JPEG file of the quality that [`save`] writes.
///
/// # Errors
/// `Image` for a picture without pixels, or with a side of more than 65535; `OutOfMemory`.
pub fn encode_jpeg(image: &RgbImage) -> Result<Vec<u8>> {
    encode_bytes(image, Format::Jpeg)
}

fn encode_bytes(image: &RgbImage, format: Format) -> Result<Vec<u8>> {
    let (width, height) = image.dimensions();
    let name = format!("a picture of {width}x{height} pixels");
    if width == 0 || height == 0 {
        return Err(Error::image(name, "cannot be encoded: it has no pixels"));
    }
    ask(image)?;
    let mut out = Growing::default();
    match encode(image, format, &mut out) {
        Ok(()) => Ok(out.bytes),
        Err(_) if out.refused > 0 => Err(Error::OutOfMemory { what: format!("encoding {name}"), bytes: out.refused }),
        Err(e) => Err(Error::image(name, format!("cannot be encoded: {e}"))),
    }
}

/// Bytes from the first pixel to behind the last one of a picture whose rows are `stride` bytes apart.
///
/// # Errors
/// `Image` for a side of 0 or above [`MAX_SIDE`]; `InvalidArgument` for rows that overlap.
pub fn rgb_length(width: usize, height: usize, stride: usize) -> Result<usize> {
    let sides = 1..=MAX_SIDE as usize;
    if !sides.contains(&width) || !sides.contains(&height) {
        let reason = format!("is not possible: sides are 1 to {MAX_SIDE} pixels");
        return Err(Error::image(format!("a picture of {width}x{height} pixels"), reason));
    }
    if stride < width * 3 {
        return Err(Error::invalid(format!("a stride of {stride} bytes is less than {width} pixels of 3 bytes")));
    }
    let last = stride.checked_mul(height - 1).and_then(|before| before.checked_add(width * 3));
    last.ok_or_else(|| Error::invalid(format!("{height} rows of {stride} bytes are more than memory can hold")))
}

/// A picture of 8-bit RGB pixels, whose rows are `stride` bytes apart; see [`rgb_length`].
///
/// # Errors
/// As that function; `InvalidArgument` for fewer bytes; `OutOfMemory`.
pub fn from_rgb(pixels: &[u8], width: usize, height: usize, stride: usize) -> Result<RgbImage> {
    let length = rgb_length(width, height, stride)?;
    if pixels.len() < length {
        return Err(Error::invalid(format!("a picture of {width}x{height} pixels needs {length} bytes")));
    }
    let mut copy = try_with_capacity(width * height * 3, "the pixels of a picture")?;
    pixels.chunks(stride).take(height).for_each(|row| copy.extend_from_slice(&row[..width * 3]));
    whole(width as u32, height as u32, copy)
}

/// A copy that says so where there is no memory for it.
pub fn copy(image: &RgbImage) -> Result<RgbImage> {
    whole(image.width(), image.height(), try_copy(image.as_raw(), "a copy of a picture")?)
}

fn whole(width: u32, height: u32, pixels: Vec<u8>) -> Result<RgbImage> {
    let lost = || Error::Internal(format!("a picture of {width}x{height} pixels lost some of them"));
    RgbImage::from_raw(width, height, pixels).ok_or_else(lost)
}

/// A format that pictures are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Png,
    Jpeg,
}

fn format_of(path: &Path) -> Result<Format> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("png") => Ok(Format::Png),
        Some("jpg" | "jpeg") => Ok(Format::Jpeg),
        Some(other) => {
            Err(Error::invalid(format!("{}: pictures are written as .png or .jpg, not as .{other}", path.display())))
        }
        None => Err(Error::invalid(format!("{}: the name must end in .png or .jpg", path.display()))),
    }
}

/// Fails when [`save`] could not write to `path` whatever the picture: an extension other than png, jpg and
/// jpeg, or a folder that does not exist. To be called before the work, not after it.
pub fn check_target(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    format_of(path)?;
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::invalid(format!("{}: the folder {} does not exist", path.display(), folder.display())));
    }
    // The rename would put a file in the place of a device.
    match std::fs::metadata(path) {
        Ok(old) if old.is_dir() => Err(Error::invalid(format!("{}: is a folder", path.display()))),
        Ok(old) if !old.is_file() => Err(Error::invalid(format!("{}: is a device or a pipe", path.display()))),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes `image` as PNG or JPEG, as the extension of `path` says. The file appears whole or not at all: it is
/// written under another name in the same folder and renamed. An existing file is replaced.
pub fn save(image: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    check_target(path)?;
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::invalid(format!("{}: a picture without pixels cannot be written", path.display())));
    }
    let format = format_of(path)?;
    ask(image)?;
    let part = part_name(path);
    let written = write_part(image, format, &part, path)
        .and_then(|()| fs::rename(&part, path).map_err(|e| Error::io(path.display(), e)));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to report
    }
    written
}

/// A name beside `path` that no other thread or process uses.
fn part_name(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{}-{number}.part", std::process::id()))
}

fn write_part(image: &RgbImage, format: Format, part: &Path, path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(path.display(), e);
    let file = OpenOptions::new().write(true).create_new(true).open(part).map_err(failed)?;
    let mut out = BufWriter::new(file);
    encode(image, format, &mut out).map_err(|e| match e {
        ImageError::IoError(e) => failed(e),
        e => Error::image(path.display(), format!("cannot be encoded: {e}")),
    })?;
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed) // a full disk may speak up only here
}

/// The encoders do not survive being refused memory, so what they may take (filtered rows, and those compressed) is
/// asked for beforehand.
fn ask(image: &RgbImage) -> Result<()> {
    let bytes = image.as_raw().len().saturating_mul(2);
    let what = || format!("encoding a picture of {}x{} pixels", image.width(), image.height());
    try_with_capacity::<u8>(bytes, &what()).map(drop)
}

fn encode(image: &RgbImage, format: Format, out: &mut impl Write) -> Result<(), ImageError> {
    let (pixels, width, height) = (image.as_raw(), image.width(), image.height());
    match format {
        Format::Png => PngEncoder::new(out).write_image(pixels, width, height, ExtendedColorType::Rgb8),
        Format::Jpeg => {
            JpegEncoder::new_with_quality(out, JPEG_QUALITY).write_image(pixels, width, height, ExtendedColorType::Rgb8)
        }
    }
}

/// Pixels as the image tokenizer takes them: [height, width, 3] in row-major order, u8 mapped to [-1, 1] by
/// x / 127.5 - 1.
pub fn to_unit(image: &RgbImage) -> Result<Vec<f32>> {
    let mut out = crate::parallel::try_vec::<f32>(image.as_raw().len(), "the pixels of a picture")?;
    for (o, &v) in out.iter_mut().zip(image.as_raw()) {
        *o = f32::from(v) / 127.5 - 1.0;
    }
    Ok(out)
}

/// The inverse for the tokenizer's output: `clamp((v + 1) / 2, 0, 1) * 255`, truncated.
pub fn from_unit(pixels: &[f32], width: usize, height: usize) -> Result<RgbImage> {
    let mut bytes = crate::parallel::try_vec::<u8>(pixels.len(), "the pixels of a picture")?;
    for (o, &v) in bytes.iter_mut().zip(pixels) {
        *o = (((v + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0) as u8;
    }
    let sides = (u32::try_from(width).ok(), u32::try_from(height).ok());
    match sides {
        (Some(w), Some(h)) if width.checked_mul(height).and_then(|n| n.checked_mul(3)) == Some(bytes.len()) => {
            RgbImage::from_raw(w, h, bytes)
        }
        _ => None,
    }
    .ok_or_else(|| Error::invalid(format!("{} values are no picture of {width}x{height} pixels", pixels.len())))
}

#[cfg(test)]
mod tests;
