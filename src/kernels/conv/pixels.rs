//! Pixels into the ring: normalized, in what the unit multiplies, with zeros around the picture.

use super::Normalization;
use super::geometry::{LINE, Plan};
use super::unit::Unit;
use crate::error::Result;
use crate::memory::Aligned;

/// A normalization with as many channels as steps have.
#[derive(Default)]
pub struct Affine {
    /// scales, then shifts
    values: Aligned<f32>,
    len: usize,
    pub swish: bool,
}

impl Affine {
    /// `len`: channels in whole steps.
    pub fn new(norm: Option<Normalization>, len: usize) -> Result<Affine> {
        let mut affine = Affine { len, swish: norm.is_some_and(|n| n.swish), values: Aligned::default() };
        affine.values.try_grow_to(2 * len, "a normalization")?;
        let (scale, shift) = affine.values.split_at_mut(len);
        match norm {
            Some(norm) => {
                scale[..norm.scale.len()].copy_from_slice(norm.scale);
                shift[..norm.shift.len()].copy_from_slice(norm.shift);
            }
            None => scale.fill(1.0),
        }
        Ok(affine)
    }

    /// Scales and shifts.
    #[inline(always)]
    pub fn values(&self) -> (&[f32], &[f32]) {
        let (scale, shift) = self.values.split_at(self.len);
        (scale, &shift[..self.len])
    }
}

/// A row of the input and the part of it that a strip reads.
pub struct Row<'a> {
    /// [width, channels]; `None` outside the picture
    pub pixels: Option<&'a [f32]>,
    /// The column that the ring's first place holds, before the picture or in it.
    pub first: isize,
}

/// Fills a row of the ring.
///
/// # Safety
/// `to` has `plan.row_bytes()` writable bytes at a cache line, which nobody else uses meanwhile.
#[inline(always)]
pub unsafe fn bring<U: Unit>(unit: U, plan: &Plan, affine: &Affine, row: &Row, to: *mut u8) {
    let places = plan.block_bytes / LINE;
    let Some(pixels) = row.pixels else {
        // SAFETY: the caller's promise
        return unsafe { to.write_bytes(0, plan.row_bytes()) };
    };
    let width = pixels.len() / plan.channels;
    let before = (-row.first).max(0) as usize;
    let start = row.first.max(0) as usize;
    let inside = width.saturating_sub(start).min(places - before);
    for plane in 0..plan.terms * plan.channel_blocks {
        // SAFETY: all places of a row of the ring lie inside it
        unsafe {
            let to = to.add(plane * plan.block_bytes);
            to.write_bytes(0, before * LINE);
            to.add((before + inside) * LINE).write_bytes(0, (places - before - inside) * LINE);
        }
    }
    let pixels = &pixels[start * plan.channels..][..inside * plan.channels];
    assert!(affine.len >= plan.channel_blocks * plan.step, "a normalization of all channels");
    // SAFETY: `inside` places follow `before` ones; the rest was checked here
    unsafe { unit.convert(pixels, affine, plan, to.add(before * LINE)) };
}
