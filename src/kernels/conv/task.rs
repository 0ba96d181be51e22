//! The work of a convolution in tasks, and a task's way through its rows.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::geometry::{BLOCK, LINE, Phase, Plan, TILE};
use super::pack::{self, pack};
use super::pixels::{Affine, Row, bring};
use super::results::Results;
use super::unit::{Operands, Sums, Unit};
use super::{Convolution, Scratch};
use crate::error::{Error, Result};
use crate::kernels::Epilogue;
use crate::kernels::isa::{Isa, Op, prefetch_to_write};
use crate::memory::{Aligned, Charge, try_push, try_resize, try_vec};
use crate::parallel::Exec;

/// Pairs of rows of a task, at least: the rows above and below them are brought in once more.
const LEAST_PAIRS: usize = 4;

/// Memory of a thread.
#[derive(Default)]
pub struct Memory {
    ring: Aligned<u8>,
    /// of the steps of all phases, see [`Plan::places`]
    places: Vec<[u32; 2]>,
    /// weights of a block of outputs in f32, see [`pack`]
    rows: Aligned<f32>,
    charge: Charge,
}

impl Memory {
    /// Makes room for a plan's ring and weights of `cols` columns.
    fn grow_to(&mut self, exec: &Exec, plan: &Plan, cols: usize) -> Result<()> {
        const WHAT: &str = "a convolution's memory of a thread";
        let (places, rows) = (plan.phases().count() * plan.steps(), pack::len(cols));
        let more = plan.ring_bytes().saturating_sub(self.ring.len())
            + places.saturating_sub(self.places.len()) * size_of::<[u32; 2]>()
            + rows.saturating_sub(self.rows.len()) * size_of::<f32>();
        if self.charge.bytes() == 0 {
            self.charge = exec.take(0, WHAT)?;
        }
        self.charge.grow(more, WHAT)?;
        if self.ring.len() < plan.ring_bytes() {
            self.ring = Aligned::default(); // frees the old memory before asking for more
            self.ring.try_grow_to(plan.ring_bytes(), WHAT)?;
        }
        self.rows.try_grow_to(rows, WHAT)?;
        let places = places.max(self.places.len());
        try_resize(&mut self.places, places, WHAT)
    }
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
pub fn run<U: Unit>(
    unit: U,
    conv: &Convolution,
    exec: &Exec,
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
    let sides = (conv.height, conv.width);
    let plan = &Plan::new(conv.sampling, conv.kernel, sides, (conv.channels(), outputs), &U::MEASURES);
    let tasks = (4 * exec.threads.count()).div_ceil(plan.strips);
    let band = plan.row_pairs().div_ceil(tasks).max(LEAST_PAIRS).min(plan.row_pairs());
    let bands = plan.row_pairs().div_ceil(band);
    let at_a_time = exec.threads.count().min(plan.out_blocks.max(bands * plan.strips));
    memories(exec, plan, conv.weights.cols(), at_a_time, scratch)?;
    weights(unit, conv, exec, plan, scratch)?;
    let Scratch { weights: packed, memories, .. } = scratch;
    let _charge = exec.take(plan.shared_bytes(), WHAT)?;
    let affine = &Affine::new(conv.norm, plan.channel_blocks * plan.step)?;
    let padded = plan.out_blocks * TILE;
    let mut bias = Aligned::default();
    bias.try_grow_to(padded, "the biases of a convolution")?;
    bias[..outputs].copy_from_slice(conv.bias);

    let mut sums = try_vec::<f64>(plan.sums(), WHAT)?;
    let work = &Work {
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
            with_memory(memories, |memory| {
                for pair in (first..plan.row_pairs().min(first + band)).step_by(plan.depth) {
                    exec.check()?;
                    let pairs = pair..plan.row_pairs().min(first + band).min(pair + plan.depth);
                    // the rows of the pairs before are in the ring from the second turn on
                    unit.run(Turn { unit, work, memory, strip, pairs, continued: pair > first });
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

/// Makes memory for as many threads as work at a time: before they do, so that what a convolution needs does not hang on which
/// of them come to work.
fn memories(exec: &Exec, plan: &Plan, cols: usize, count: usize, scratch: &mut Scratch) -> Result<()> {
    let all = scratch.memories.get_mut().unwrap_or_else(PoisonError::into_inner);
    while all.len() < count {
        try_push(all, Memory::default(), "the list of a convolution's memories")?;
    }
    all.iter_mut().try_for_each(|memory| memory.grow_to(exec, plan, cols))
}

/// Brings the weights into tiles.
fn weights<U: Unit>(unit: U, conv: &Convolution, exec: &Exec, plan: &Plan, scratch: &mut Scratch) -> Result<()> {
    const WHAT: &str = "the weights of a convolution in tiles";
    if scratch.weights.len() * 4 < plan.weight_bytes() {
        (scratch.weights, scratch.charge) = Default::default();
        scratch.charge = exec.take(plan.weight_bytes(), WHAT)?;
        scratch.weights.try_grow_to(plan.weight_bytes() / 4, WHAT)?;
    }
    let to = Shared(scratch.weights.as_mut_ptr());
    let memories = &scratch.memories;
    exec.run(|| {
        (0..plan.out_blocks).into_par_iter().try_for_each(|block| {
            with_memory(memories, |memory| {
                // SAFETY: the memory holds all tiles; every task writes those of its own block
                unsafe { pack(unit, plan, conv.weights, block, &mut memory.rows, to.get().cast()) }
            })
        })
    })
}

/// Runs `work` with memory that nobody else has meanwhile.
fn with_memory(memories: &Mutex<Vec<Memory>>, work: impl FnOnce(&mut Memory) -> Result<()>) -> Result<()> {
    let all = || memories.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut memory) = all().pop() else {
        return Err(Error::Internal("more convolutions at a time than there is memory for".to_owned()));
    };
    let result = work(&mut memory);
    try_push(&mut all(), memory, "the list of a convolution's memories")?;
    result
}

/// Some pairs of rows of a strip, for [`Work::pairs`].
struct Turn<'a, U> {
    unit: U,
    work: &'a Work<'a>,
    memory: &'a mut Memory,
    strip: usize,
    pairs: Range<usize>,
    continued: bool,
}

impl<U: Unit> Op for Turn<'_, U> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        // SAFETY: `run` made this: the ring has its bytes, the weights are packed, the rows of the pairs before are in the
        // ring where it says so, and no other task has these positions
        unsafe { self.work.pairs(self.unit, self.memory, self.strip, self.pairs, self.continued) }
    }
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
    #[inline(always)]
    unsafe fn pairs<U: Unit>(&self, unit: U, memory: &mut Memory, strip: usize, pairs: Range<usize>, continued: bool) {
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
                first: (strip * plan.strip * plan.stride) as isize - plan.before() as isize,
            };
            // SAFETY: the slot lies inside the ring
            unsafe { bring(unit, plan, self.affine, &row_of, ring.add(plan.slot(row) * plan.row_bytes())) };
        }
        for group in (0..plan.pairs()).step_by(plan.group) {
            let group = group..plan.pairs().min(group + plan.group);
            for pair in pairs.clone() {
                let all = plan.phases().flat_map(|phase| plan.places(pair, phase));
                memory.places.iter_mut().zip(all).for_each(|(to, places)| *to = places);
                let read = (ring.cast_const(), &memory.places[..]);
                // SAFETY: the caller's promise
                unsafe { self.outputs(unit, read, strip, pair, group.clone()) }
            }
        }
    }

    /// A pair of rows of a strip, for some pairs of output blocks.
    ///
    /// # Safety
    /// As [`Work::pairs`], with the rows in the ring, and the places of all phases' steps in `places`.
    #[inline(always)]
    unsafe fn outputs<U: Unit>(
        &self,
        unit: U,
        (ring, places): (*const u8, &[[u32; 2]]),
        strip: usize,
        pair: usize,
        group: Range<usize>,
    ) {
        let (plan, tiles) = (self.plan, &unit.tiles());
        let (first, last) = (strip * plan.strip, plan.width.min((strip + 1) * plan.strip));
        let sums = (pair * plan.strips + strip) * 2 * self.bias.len();
        let sums = self.sums.get().wrapping_add(sums);
        let mut buffers = [const { Buffer([0.0; 4 * TILE * TILE]) }; 2];
        let [mut here, mut there] = buffers.each_mut().map(|buffer| buffer.0.as_mut_ptr());
        let mut before: Option<Results> = None;
        for x in (first..last).step_by(plan.tile) {
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
                        cells: plan.cells,
                    };
                    // SAFETY: the caller's promise; the tiles that wait are in the other buffer, if in one
                    unsafe {
                        let next = self.place((pair, x), out_pair, phase, sums, here);
                        self.fetch(&next, group.end - out_pair, group.len());
                        match blocks {
                            2 => unit.multiply::<2>(tiles, operands, next.start(), &next, before.as_ref()),
                            _ => unit.multiply::<1>(tiles, operands, next.start(), &next, before.as_ref()),
                        }
                        before = Some(next);
                    }
                    (here, there) = (there, here);
                }
            }
        }
        if let Some(last) = before {
            // SAFETY: its tiles are stored
            unsafe { last.finish(unit.isa()) }
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
    ) -> Results {
        let (plan, outputs) = (self.plan, self.conv.bias.len());
        let first = out_pair * 2 * TILE;
        let lanes = plan.blocks_of(out_pair) * TILE;
        let rows = (plan.height - 2 * pair).min(2);
        let pixels = (plan.width - x).min(plan.tile);
        let y = [0, 1].map(|t| {
            let row = (2 * pair + t) * plan.spread + phase.row;
            let column = x * plan.spread + phase.column;
            self.y.get().wrapping_add((row * plan.width * plan.spread + column) * outputs + first)
        });
        let y = Sums { rows: y, pixel: plan.spread * outputs * size_of::<f32>() };
        let valid = lanes.min(outputs - first);
        let whole = rows == 2 && pixels == plan.tile && valid == lanes;
        let tiles = match whole {
            true => y,
            false => {
                let rows = [buffer, buffer.wrapping_add(plan.tile * lanes)];
                Sums { rows, pixel: lanes * size_of::<f32>() }
            }
        };
        let bias = self.bias[first..].as_ptr();
        let results = Results {
            tiles,
            y: if whole { None } else { Some((y, valid)) },
            rows,
            pixels,
            tile: plan.tile,
            blocks: lanes / TILE,
            bias,
            add: self.add,
            sums: [sums.wrapping_add(first), sums.wrapping_add(self.bias.len() + first)],
        };
        if self.add && !whole {
            // SAFETY: the caller's promise
            unsafe { results.fetch() }
        }
        results
    }

    /// Asks for the lines that results will be stored to: of these tiles, or where they are added to of the next ones, as
    /// those are read first. `left` pairs of output blocks are left of a group's `all`.
    fn fetch(&self, to: &Results, left: usize, all: usize) {
        let next = match (self.add, left) {
            (false, _) => 0,
            (true, 1) => (self.plan.tile * self.conv.bias.len()).wrapping_sub((all - 1) * 2 * TILE),
            (true, _) => 2 * TILE,
        };
        for (row, pixel) in (0..to.rows).flat_map(|row| (0..to.pixels).map(move |pixel| (row, pixel))) {
            let at = to.y.map_or(to.tiles, |(y, _)| y).at(row, pixel).wrapping_add(next);
            prefetch_to_write(at.cast());
            prefetch_to_write(at.wrapping_add(TILE).cast());
        }
    }
}

/// Two tiles of pixels in one or two blocks of outputs, whatever lies outside the picture.
#[repr(align(64))]
struct Buffer([f32; 4 * TILE * TILE]);
