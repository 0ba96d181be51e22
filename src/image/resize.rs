//! Bicubic resizing, bit for bit as Pillow computes it (`Image.resize(size, BICUBIC)` on 8-bit RGB), and the
//! crop or squash that brings any picture to the size of the image tokenizer.
//!
//! The method: a separable cubic convolution filter (a = -0.5) whose support is widened by the scale when the
//! picture shrinks; taps outside the picture are dropped and the rest renormalized; weights in fixed point with 22
//! bits; the horizontal pass first, and each pass rounds to u8. Output pixels do not depend on each other, so only
//! those inside the crop are computed: a strip of 16384x1 pixels costs no more than a square.

use std::ops::Range;

use super::RgbImage;
use crate::error::{Error, Result};
use crate::parallel::try_vec;

/// Bits behind the point of a weight: 32 less 8 for the pixel and 2 for the sum's headroom.
const WEIGHT_BITS: u32 = 22;

/// How a picture of any shape becomes a square.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Fit {
    /// The shorter side is resized to the square's, then the middle of the longer one is kept.
    #[default]
    Crop,
    /// Both sides are resized to the square's: all is kept, proportions are not. For diagrams and documents.
    Squash,
}

/// Brings `image` to `size` x `size` pixels.
///
/// # Errors
/// `Error::InvalidArgument` for a picture without pixels or a size of 0; `Error::OutOfMemory`.
pub fn fit(image: &RgbImage, size: usize, mode: Fit) -> Result<RgbImage> {
    let (width, height) = (image.width() as u64, image.height() as u64);
    let short = width.min(height);
    if short == 0 {
        return Err(Error::invalid(format!("a picture of {width}x{height} pixels cannot be resized")));
    }
    let side = side(size)?;
    let scaled = |length: u64| match mode {
        Fit::Squash => side,
        Fit::Crop => side * length / short, // truncated; the shorter side gives `side`
    };
    resample(image, Axis::cropped(scaled(width), side), Axis::cropped(scaled(height), side))
}

/// Resizes `image` to `width` x `height` pixels.
///
/// # Errors
/// `Error::InvalidArgument` when any side, of the picture or asked for, is 0; `Error::OutOfMemory`.
pub fn bicubic(image: &RgbImage, width: usize, height: usize) -> Result<RgbImage> {
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::invalid("a picture without pixels cannot be resized"));
    }
    let (width, height) = (side(width)?, side(height)?);
    resample(image, Axis::cropped(width, width), Axis::cropped(height, height))
}

fn side(length: usize) -> Result<u64> {
    match u32::try_from(length) {
        Ok(n) if n > 0 => Ok(n.into()),
        _ => Err(Error::invalid(format!("a picture cannot be resized to a side of {length} pixels"))),
    }
}

/// One axis of the result: its full length after scaling, and the part of it that is wanted.
struct Axis {
    full: u64,
    window: Range<u64>,
}

impl Axis {
    /// The middle `len` of `full` pixels; the offset is rounded half to even, as Python's `round` does.
    fn cropped(full: u64, len: u64) -> Axis {
        let excess = full - len;
        let mut offset = excess / 2;
        if excess % 2 == 1 && offset % 2 == 1 {
            offset += 1;
        }
        Axis { full, window: offset..offset + len }
    }

    fn len(&self) -> usize {
        (self.window.end - self.window.start) as usize
    }

    /// True when the axis keeps every pixel of `source` as it is.
    fn is_identity(&self, source: u32) -> bool {
        self.full == u64::from(source) && self.window == (0..self.full)
    }
}

/// The taps of every pixel of a window: `weights[i]` apply to source pixels from `first[i]` on.
struct Taps {
    first: Vec<usize>,
    count: Vec<usize>,
    weights: Vec<i32>,
    /// Weights reserved for each pixel.
    stride: usize,
}

impl Taps {
    fn new(source: u32, axis: &Axis) -> Result<Taps> {
        let scale = f64::from(source) / axis.full as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let stride = (2 * support.ceil() as usize + 1).min(source as usize);
        let len = axis.len();
        let out_of_range = || Error::invalid("a picture is too large to be resized");
        let what = "the weights of a resize";
        let mut taps = Taps {
            first: try_vec(len, what)?,
            count: try_vec(len, what)?,
            weights: try_vec(len.checked_mul(stride).ok_or_else(out_of_range)?, what)?,
            stride,
        };
        let mut exact = vec![0.0f64; stride];
        for i in 0..len {
            let center = ((axis.window.start + i as u64) as f64 + 0.5) * scale;
            // Casts to integers truncate and saturate at 0, which drops the taps left of the picture.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(source as usize);
            let exact = &mut exact[..end - first];
            for (x, w) in exact.iter_mut().enumerate() {
                *w = cubic(((x + first) as f64 - center + 0.5) * (1.0 / filter_scale)); // in this order: bits matter
            }
            let sum: f64 = exact.iter().sum();
            taps.first[i] = first;
            taps.count[i] = exact.len();
            for (fixed, &w) in taps.weights[i * stride..].iter_mut().zip(exact.iter()) {
                let w = (if sum != 0.0 { w / sum } else { w }) * f64::from(1 << WEIGHT_BITS);
                *fixed = (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
        }
        Ok(taps)
    }

    fn of(&self, i: usize) -> (usize, &[i32]) {
        (self.first[i], &self.weights[i * self.stride..][..self.count[i]])
    }

    /// The source pixels that any of the taps touch.
    fn touched(&self) -> Range<usize> {
        let end = self.first.iter().zip(&self.count).map(|(f, c)| f + c).max().unwrap_or(0);
        self.first.iter().copied().min().unwrap_or(0)..end
    }
}

/// The cubic convolution kernel of Keys (1981) with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// A sum of fixed-point products, which began at one half, as a pixel.
fn to_u8(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (WEIGHT_BITS - 1);

fn resample(image: &RgbImage, x: Axis, y: Axis) -> Result<RgbImage> {
    let vertical = Taps::new(image.height(), &y)?;
    let rows = vertical.touched();
    let (width, height) = (x.len(), y.len());
    let row_bytes = width.checked_mul(3).ok_or_else(|| Error::invalid("a picture is too wide to be resized"))?;

    // Horizontal: only the rows that the vertical pass will read. [rows, width, 3]
    let source_bytes = image.width() as usize * 3;
    let source = image.as_raw().chunks_exact(source_bytes).skip(rows.start).take(rows.len());
    let mut squeezed = try_vec::<u8>(area(row_bytes, rows.len())?, "a picture being resized")?;
    if x.is_identity(image.width()) {
        for (out, row) in squeezed.chunks_exact_mut(row_bytes).zip(source) {
            out.copy_from_slice(row);
        }
    } else {
        let horizontal = Taps::new(image.width(), &x)?;
        for (out, row) in squeezed.chunks_exact_mut(row_bytes).zip(source) {
            horizontal_row(&horizontal, row, out);
        }
    }

    // Vertical. [height, width, 3]
    let mut out = try_vec::<u8>(area(row_bytes, height)?, "a resized picture")?;
    let mut sums = try_vec::<i32>(row_bytes, "a row of a resized picture")?;
    for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
        let (first, weights) = vertical.of(i);
        sums.fill(HALF);
        for (row, &w) in squeezed.chunks_exact(row_bytes).skip(first - rows.start).zip(weights) {
            for (s, &v) in sums.iter_mut().zip(row) {
                *s += i32::from(v) * w;
            }
        }
        for (o, &s) in out.iter_mut().zip(&sums) {
            *o = to_u8(s);
        }
    }
    RgbImage::from_raw(width as u32, height as u32, out)
        .ok_or_else(|| Error::Internal(format!("a resized picture of {width}x{height} pixels has the wrong size")))
}

fn area(row_bytes: usize, rows: usize) -> Result<usize> {
    row_bytes.checked_mul(rows).ok_or_else(|| Error::invalid("a picture is too large to be resized"))
}

/// The weights of a pixel sum to 1 and their magnitudes to at most 1.25, so that 8 + 22 bits fit an i32.
fn horizontal_row(taps: &Taps, row: &[u8], out: &mut [u8]) {
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (first, weights) = taps.of(i);
        let mut sums = [HALF; 3];
        for (source, &w) in row[first * 3..].chunks_exact(3).zip(weights) {
            for (s, &v) in sums.iter_mut().zip(source) {
                *s += i32::from(v) * w;
            }
        }
        for (o, s) in pixel.iter_mut().zip(sums) {
            *o = to_u8(s);
        }
    }
}
