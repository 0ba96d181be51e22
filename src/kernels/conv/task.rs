//! A convolution on AMX: the work in tasks, and a task's way through its rows.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::geometry::{BLOCK, LINE, Phase, Plan, TILE};
use super::pack::pack;
use super::pixels::{Affine, Row, bring};
use super::tiles::{Operands, Sums, begin, end, multiply};
use super::{Convolution, Precision, Scratch};
use crate::error::Result;
use crate::kernels::Epilogue;
use crate::kernels::amx::{Amx, Tiles};
use crate::memory::{Aligned, try_resize, try_vec};
use crate::parallel::Exec;

/// Pairs of rows of a task, at least: the rows above and below them are brought in once more.
const LEAST_PAIRS: usize = 4;

/// Memory of a thread.
#[derive(Default)]
struct Memory {
    ring: Aligned<u8>,
    /// of the steps of all phases, see [`Plan::places`]
    places: Vec<[u32; 2]>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// What tasks write, each its own part.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: every task writes its own positions and outputs, see `run`
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// See [`Convolution::run`], which checked the sizes.
pub fn run(
    conv: &Convolution,
    exec: &Exec,
    amx: Amx,
    precision: Precision,
    scratch: &mut Scratch,
    y: &mut [f32],
    epilogue: Epilogue,
) -> Result<Vec<f64>> {
    const WHAT: &str = "the sums of a convolution";
    let outputs = conv.bias.len();
    let mut total = try_vec(2 * outputs, WHAT)?;
    if y.is_empty() {
        return Ok(total);
    }
    let terms = if precision == Precision::Split { 2 } else { 1 };
    let plan = &Plan::new(conv.sampling, conv.kernel, (conv.height, conv.width), (conv.channels(), outputs), terms);
    let packed = &weights(conv, exec, amx, plan, scratch)?;
    let affine = &Affine::new(conv.norm, plan.channel_blocks)?;
    let padded = plan.out_blocks * TILE;
    let mut bias = Aligned::default();
    bias.try_grow_to(padded, "the biases of a convolution")?;
    bias[..outputs].copy_from_slice(conv.bias);

    let tasks = (4 * exec.threads.count()).div_ceil(plan.strips);
    let band = plan.row_pairs().div_ceil(tasks).max(LEAST_PAIRS).min(plan.row_pairs());
    let bands = plan.row_pairs().div_ceil(band);
    let parts = plan.row_pairs() * plan.strips;
    let rings = exec.threads.count().min(bands * plan.strips);
    let shared = rings.saturating_mul(plan.ring_bytes()).saturating_add(parts * 2 * padded * 8);
    let _charge = exec.take(shared, "the rings of a convolution")?;
    let mut sums = try_vec::<f64>(parts * 2 * padded, WHAT)?;
    let work = Work {
        conv,
        plan,
        affine,
        packed: Shared(packed.as_ptr().cast_mut().cast()),
        bias: &bias[..padded],
        add: epilogue == Epilogue::Add,
        y: Shared(y.as_mut_ptr()),
        sums: Shared(sums.as_mut_ptr()),
    };
    exec.run(|| {
        (0..bands * plan.strips).into_par_iter().try_for_each(|task| {
            let (first, strip) = (task / plan.strips * band, task % plan.strips);
            MEMORY.with_borrow_mut(|memory| {
                const WHAT: &str = "the ring of a convolution";
                memory.ring.try_grow_to(plan.ring_bytes(), WHAT)?;
                try_resize(&mut memory.places, plan.phases().count() * plan.steps(), WHAT)?;
                for pair in (first..plan.row_pairs().min(first + band)).step_by(plan.depth) {
                    exec.check()?;
                    let pairs = pair..plan.row_pairs().min(first + band).min(pair + plan.depth);
                    // SAFETY: the ring has its bytes, the weights are packed; no other task has these positions. The
                    // rows of the pairs before are in the ring from the second turn on.
                    unsafe { work.pairs(amx, memory, strip, pairs, pair > first) }
                }
                Ok(())
            })
        })
    })?;
    for part in sums.chunks_exact(2 * padded) {
        for (total, part) in total.chunks_exact_mut(outputs).zip(part.chunks_exact(padded)) {
            total.iter_mut().zip(part).for_each(|(total, sum)| *total += sum);
        }
    }
    Ok(total)
}

/// The weights in tiles.
fn weights<'s>(conv: &Convolution, exec: &Exec, amx: Amx, plan: &Plan, scratch: &'s mut Scratch) -> Result<&'s [u16]> {
    const WHAT: &str = "the weights of a convolution in tiles";
    if scratch.weights.len() * 2 < plan.weight_bytes() {
        *scratch = Scratch::default();
        scratch.charge = exec.take(plan.weight_bytes(), WHAT)?;
        scratch.weights.try_grow_to(plan.weight_bytes() / 2, WHAT)?;
    }
    let to = Shared(scratch.weights.as_mut_ptr());
    exec.run(|| {
        (0..plan.out_blocks).into_par_iter().try_for_each(|block| {
            // SAFETY: the memory holds all tiles; every task writes those of its own block
            unsafe { pack(amx, plan, conv.weights, block, to.get().cast()) }
        })
    })?;
    Ok(&scratch.weights)
}

/// What the tasks of a convolution share.
#[derive(Clone, Copy)]
struct Work<'a> {
    conv: &'a Convolution<'a>,
    plan: &'a Plan,
    affine: &'a Affine,
    /// only read
    packed: Shared<u8>,
    /// [outputs, in whole blocks]
    bias: &'a [f32],
    add: bool,
    y: Shared<f32>,
    /// [pair of rows][strip][sum, square][outputs, in whole blocks]
    sums: Shared<f64>,
}

impl Work<'_> {
    /// Some pairs of rows of a strip, at most as many as the ring is for.
    ///
    /// # Safety
    /// The memory is large enough, with the rows of the pair before if `continued`; nobody else uses these positions of
    /// `y` and `sums` meanwhile.
    unsafe fn pairs(&self, amx: Amx, memory: &mut Memory, strip: usize, pairs: Range<usize>, continued: bool) {
        let plan = self.plan;
        let mut rows = plan.input_rows(pairs.clone());
        if continued {
            rows.start = rows.start.max(plan.input_rows(pairs.start - 1..pairs.start).end);
        }
        let ring = memory.ring.as_mut_ptr();
        for row in rows {
            let len = self.conv.width * plan.channels;
            let inside = usize::try_from(row).ok().filter(|row| *row < self.conv.height);
            let row_of = Row {
                pixels: inside.map(|row| &self.conv.x[row * len..][..len]),
                channels: plan.channels,
                first: (strip * plan.strip * plan.stride) as isize - plan.before() as isize,
            };
            // SAFETY: the slot lies inside the ring
            unsafe { bring(amx, plan, self.affine, &row_of, ring.add(plan.slot(row) * plan.row_bytes())) };
        }
        for group in (0..plan.pairs()).step_by(plan.group) {
            let group = group..plan.pairs().min(group + plan.group);
            for pair in pairs.clone() {
                let all = plan.phases().flat_map(|phase| plan.places(pair, phase));
                memory.places.iter_mut().zip(all).for_each(|(to, places)| *to = places);
                let read = (ring.cast_const(), &memory.places[..]);
                // SAFETY: the token proves the features; the rest is the caller's promise
                unsafe {
                    match plan.terms {
                        1 => self.outputs::<false>(&amx.tiles(), read, strip, pair, group.clone()),
                        _ => self.outputs::<true>(&amx.tiles(), read, strip, pair, group.clone()),
                    }
                }
            }
        }
    }

    /// A pair of rows of a strip, for some pairs of output blocks.
    ///
    /// # Safety
    /// As [`Work::pairs`], with the rows in the ring, and the places of all phases' steps in `places`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn outputs<const SPLIT: bool>(
        &self,
        tiles: &Tiles,
        (ring, places): (*const u8, &[[u32; 2]]),
        strip: usize,
        pair: usize,
        group: Range<usize>,
    ) {
        let plan = self.plan;
        let (first, last) = (strip * plan.strip, plan.width.min((strip + 1) * plan.strip));
        let sums = (pair * plan.strips + strip) * 2 * self.bias.len();
        let sums = self.sums.get().wrapping_add(sums);
        let mut buffers = [const { Buffer([0.0; 4 * TILE * TILE]) }; 2];
        let [mut here, mut there] = buffers.each_mut().map(|buffer| buffer.0.as_mut_ptr());
        let mut done: Option<Done> = None;
        for x in (first..last).step_by(TILE) {
            for out_pair in group.clone() {
                for (i, phase) in plan.phases().enumerate() {
                    let blocks = plan.blocks_of(out_pair);
                    let at = plan.pair_at(out_pair) + i * plan.steps() * plan.terms * blocks * BLOCK;
                    let operands = Operands {
                        ring: ring.wrapping_add((x - first) * plan.stride * LINE),
                        places: places[i * plan.steps()..].as_ptr(),
                        pixel: plan.stride * LINE,
                        plane: plan.plane_bytes(),
                        weights: self.packed.get().wrapping_add(at),
                        steps: plan.steps(),
                    };
                    // SAFETY: the caller's promise; the tiles that wait are in the other buffer, if in one
                    unsafe {
                        let next = self.place((pair, x), out_pair, phase, sums, here);
                        self.fetch(&next, group.end - out_pair, group.len());
                        match blocks {
                            2 => self.products::<SPLIT, 2>(tiles, operands, &next, &done),
                            _ => self.products::<SPLIT, 1>(tiles, operands, &next, &done),
                        }
                        done = Some(next);
                    }
                    (here, there) = (there, here);
                }
            }
        }
        if let Some(done) = done {
            // SAFETY: its tiles are stored
            unsafe { done.finish() }
        }
    }

    /// Where two tiles of pixels, from column `x` of a pair of rows on, leave a pair of output blocks.
    ///
    /// # Safety
    /// As [`Work::outputs`]; `buffer` has room for the tiles.
    unsafe fn place(
        &self,
        (pair, x): (usize, usize),
        out_pair: usize,
        phase: Phase,
        sums: *mut f64,
        buffer: *mut f32,
    ) -> Done {
        let (plan, outputs) = (self.plan, self.conv.bias.len());
        let first = out_pair * 2 * TILE;
        let lanes = plan.blocks_of(out_pair) * TILE;
        let rows = (plan.height - 2 * pair).min(2);
        let pixels = (plan.width - x).min(TILE);
        let y = [0, 1].map(|t| {
            let row = (2 * pair + t) * plan.spread + phase.row;
            let column = x * plan.spread + phase.column;
            self.y.get().wrapping_add((row * plan.width * plan.spread + column) * outputs + first)
        });
        let y = Sums { rows: y, pixel: plan.spread * outputs * size_of::<f32>() };
        let valid = lanes.min(outputs - first);
        let whole = rows == 2 && pixels == TILE && valid == lanes;
        let tiles = match whole {
            true => y,
            false => {
                let rows = [buffer, buffer.wrapping_add(TILE * lanes)];
                Sums { rows, pixel: lanes * size_of::<f32>() }
            }
        };
        let bias = self.bias[first..].as_ptr();
        let done = Done {
            tiles,
            y: if whole { None } else { Some((y, valid)) },
            rows,
            pixels,
            blocks: lanes / TILE,
            bias,
            add: self.add,
            sums: [sums.wrapping_add(first), sums.wrapping_add(self.bias.len() + first)],
        };
        if self.add && !whole {
            // SAFETY: the caller's promise
            unsafe { done.fetch() }
        }
        done
    }

    /// Asks for the lines that results will be stored to: of these tiles, or where they are added to of the next ones, as
    /// those are read first. `left` pairs of output blocks are left of a group's `all`.
    fn fetch(&self, to: &Done, left: usize, all: usize) {
        let next = match (self.add, left) {
            (false, _) => 0,
            (true, 1) => (TILE * self.conv.bias.len()).wrapping_sub((all - 1) * 2 * TILE),
            (true, _) => 2 * TILE,
        };
        for (row, pixel) in (0..to.rows).flat_map(|row| (0..to.pixels).map(move |pixel| (row, pixel))) {
            let at = Done::pixel(&to.y.map_or(to.tiles, |(y, _)| y), row, pixel).wrapping_add(next);
            // SAFETY: prefetching reads and writes nothing; a processor with AMX has the instruction
            unsafe {
                asm!("prefetchw [{at}]", "prefetchw [{at} + 64]", at = in(reg) at,
                    options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// The products of two tiles; meanwhile, what is left to do with those before.
    ///
    /// # Safety
    /// As [`Work::outputs`], for the operands and where their results go.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn products<const SPLIT: bool, const BLOCKS: usize>(
        &self,
        tiles: &Tiles,
        operands: Operands,
        to: &Done,
        before: &Option<Done>,
    ) {
        // sums start from what is there, or from the biases: one line for all pixels
        let start = if to.add { to.tiles } else { Sums { rows: [to.bias.cast_mut(); 2], pixel: 0 } };
        // SAFETY: the caller's promise
        unsafe {
            begin::<BLOCKS>(tiles, start);
            multiply::<SPLIT, BLOCKS>(tiles, operands);
            if let Some(before) = before {
                before.finish();
            }
            end::<BLOCKS>(tiles, to.tiles);
        }
    }
}

/// Two tiles of pixels in one or two blocks of outputs, whatever lies outside the picture.
#[repr(align(64))]
struct Buffer([f32; 4 * TILE * TILE]);

/// Tiles that are stored, or will be: what is left to do waits until the next ones are being multiplied, as a tile can
/// be read only long after its last product began.
struct Done {
    /// where they are stored
    tiles: Sums,
    /// where they belong, and how many of their outputs there are, if elsewhere
    y: Option<(Sums, usize)>,
    /// that are in the picture: 1 or 2
    rows: usize,
    pixels: usize,
    blocks: usize,
    bias: *const f32,
    /// whether biases are still to be added
    add: bool,
    /// of the outputs' sums and squares
    sums: [*mut f64; 2],
}

impl Done {
    /// A pixel of a row.
    fn pixel(at: &Sums, row: usize, pixel: usize) -> *mut f32 {
        at.rows[row].wrapping_byte_add(pixel * at.pixel)
    }

    /// Brings what is to be added to into the buffer; zeros where there is nothing.
    ///
    /// # Safety
    /// `y` is readable, the buffer writable.
    unsafe fn fetch(&self) {
        let Some((y, valid)) = self.y else { return };
        for (row, pixel) in (0..2).flat_map(|row| (0..TILE).map(move |pixel| (row, pixel))) {
            let to = Self::pixel(&self.tiles, row, pixel);
            // SAFETY: the caller's promise
            unsafe {
                to.write_bytes(0, self.blocks * TILE);
                if row < self.rows && pixel < self.pixels {
                    to.copy_from_nonoverlapping(Self::pixel(&y, row, pixel), valid);
                }
            }
        }
    }

    /// Adds biases, takes the sums, and copies what lies in a buffer to its place.
    ///
    /// # Safety
    /// The tiles are stored, their places writable and used by nobody else meanwhile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn finish(&self) {
        // SAFETY: the caller's promise
        unsafe {
            for block in 0..self.blocks {
                match self.add {
                    false => self.block::<false>(block),
                    true => self.block::<true>(block),
                }
            }
            let Some((y, valid)) = self.y else { return };
            for (row, pixel) in (0..self.rows).flat_map(|row| (0..self.pixels).map(move |pixel| (row, pixel))) {
                Self::pixel(&y, row, pixel).copy_from_nonoverlapping(Self::pixel(&self.tiles, row, pixel), valid);
            }
        }
    }

    /// # Safety
    /// As [`Done::finish`], for a block of outputs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn block<const ADD: bool>(&self, block: usize) {
        // SAFETY: the caller's promise
        unsafe {
            let bias = _mm512_loadu_ps(self.bias.add(block * TILE));
            let mut sums = [[_mm512_setzero_ps(); 2]; 2];
            for pixel in 0..self.pixels {
                for (row, sums) in sums.iter_mut().enumerate().take(self.rows) {
                    let at = Self::pixel(&self.tiles, row, pixel).add(block * TILE);
                    let mut v = _mm512_loadu_ps(at);
                    if ADD {
                        v = _mm512_add_ps(v, bias);
                        _mm512_storeu_ps(at, v);
                    }
                    *sums = [_mm512_add_ps(sums[0], v), _mm512_fmadd_ps(v, v, sums[1])];
                }
            }
            for (i, to) in self.sums.iter().enumerate() {
                let sum = _mm512_add_ps(sums[0][i], sums[1][i]);
                let halves = [_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum)];
                for (half, sum) in halves.into_iter().enumerate() {
                    let to = to.add(block * TILE + half * TILE / 2);
                    _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(sum)));
                }
            }
        }
    }
}
