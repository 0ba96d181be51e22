//! Which pixels a window reads, and how a picture is cut into pieces.

use std::ops::Range;

/// How the positions of the output lie to those of the input, for a 3x3 window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sampling {
    /// Same size; one zero around.
    Same,
    /// Every other position; zeros only right and below. Halves the sides (rounding down).
    Down,
    /// Each input position is first repeated twice each way, then as `Same`. Doubles the sides.
    Up,
}

impl Sampling {
    /// Height or width of the output. None: it would overflow.
    pub fn output_side(self, input: usize) -> Option<usize> {
        match self {
            Sampling::Same => Some(input),
            Sampling::Down => Some(input / 2),
            Sampling::Up => input.checked_mul(2),
        }
    }
}

/// Outputs of a block, and positions of the widest tile.
pub(super) const TILE: usize = 16;
/// Bytes of a pixel's channels of a step: 16 cells.
pub(super) const LINE: usize = 64;
/// Bytes of a tile of weights.
pub(super) const BLOCK: usize = TILE * LINE;

/// What pieces the work is cut into, by what multiplies them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measures {
    /// channels of a cell of 4 bytes: 1 in f32, 2 in bfloat16
    pub cell: usize,
    /// numbers that make one
    pub terms: usize,
    /// positions of a tile in each of its two rows, at most [`TILE`]
    pub tile: usize,
    /// bytes of a ring, about: with the weights of a group it stays in the second cache
    pub ring: usize,
    /// bytes of the weights that are gone through for one pair of rows after the other
    pub group: usize,
}

impl Measures {
    /// Channels of a step.
    pub fn step(&self) -> usize {
        LINE / 4 * self.cell
    }
}

/// Where the windows of an output position's phase lie. Repeating pixels and then looking at 3x3 of them is looking at
/// 2x2 pixels with weights summed, other ones for even and odd rows and columns: four *phases* of a position of the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Phase {
    pub row: usize,
    pub column: usize,
}

/// The positions that are gone through, in pairs of rows, and the pieces that they are cut into.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    sampling: Sampling,
    /// the side of the window in the weights
    pub kernel: usize,
    pub channels: usize,
    /// positions: those of the output, with `Up` of the input
    pub height: usize,
    pub width: usize,
    /// input positions from position to position
    pub stride: usize,
    /// output positions from position to position
    pub spread: usize,
    /// channels of a step
    pub step: usize,
    /// cells of a step that have channels
    pub cells: usize,
    /// steps of a pixel's channels
    pub channel_blocks: usize,
    /// numbers that make one
    pub terms: usize,
    /// positions of a tile in each of its two rows
    pub tile: usize,
    /// positions of a strip, a multiple of a tile
    pub strip: usize,
    pub strips: usize,
    /// pairs of rows that are gone through for each group of outputs
    pub depth: usize,
    /// rows of the ring
    pub slots: usize,
    /// bytes from block to block of channels in the ring
    pub block_bytes: usize,
    /// blocks of 16 outputs
    pub out_blocks: usize,
    /// pairs of blocks of outputs in a group
    pub group: usize,
}

impl Plan {
    pub fn new(
        sampling: Sampling,
        kernel: usize,
        (height, width): (usize, usize),
        (channels, outputs): (usize, usize),
        measures: &Measures,
    ) -> Plan {
        let down = sampling == Sampling::Down;
        let (step, tile, terms) = (measures.step(), measures.tile, measures.terms);
        let mut plan = Plan {
            sampling,
            kernel,
            channels,
            height: if down { height / 2 } else { height },
            width: if down { width / 2 } else { width },
            stride: if down { 2 } else { 1 },
            spread: if sampling == Sampling::Up { 2 } else { 1 },
            step,
            cells: channels.min(step).div_ceil(measures.cell),
            channel_blocks: channels.div_ceil(step),
            terms,
            tile,
            strip: tile,
            strips: 1,
            depth: 1,
            slots: 0,
            block_bytes: 0,
            out_blocks: outputs.div_ceil(TILE),
            group: 1,
        };
        plan.group = (measures.group / plan.pair_bytes()).clamp(1, plan.pairs());
        let pixel = plan.channel_blocks * terms * LINE;
        let most = (measures.ring / (plan.slots_for(1) * pixel * plan.stride)).max(tile) / tile * tile;
        plan.strips = plan.width.div_ceil(most).max(1);
        plan.strip = plan.width.div_ceil(plan.strips).next_multiple_of(tile);
        plan.strips = plan.width.div_ceil(plan.strip).max(1);
        // a pixel's neighbours, 18 lines, are to lie in other cache sets than those of the next block of channels
        let lines = plan.stride * (plan.strip - 1) + plan.reach().end as usize + plan.before();
        plan.block_bytes = (lines + 18usize.saturating_sub(lines % 64)) * LINE;
        if plan.group < plan.pairs() {
            while plan.depth < plan.row_pairs() && plan.slots_for(plan.depth + 1) * plan.row_bytes() <= measures.ring {
                plan.depth += 1;
            }
        }
        plan.slots = plan.slots_for(plan.depth);
        plan
    }

    /// The input rows (columns) that windows reach, from that of the position on.
    fn reach(&self) -> Range<isize> {
        match (self.kernel, self.sampling) {
            (1, _) => 0..1,
            (_, Sampling::Down) => 0..3,
            _ => -1..2,
        }
    }

    /// Input columns of the ring left of a strip's first position.
    pub fn before(&self) -> usize {
        self.reach().start.unsigned_abs()
    }

    fn slots_for(&self, depth: usize) -> usize {
        self.stride * (2 * depth - 1) + self.reach().len()
    }

    /// Bytes of a row of the ring.
    pub fn row_bytes(&self) -> usize {
        self.terms * self.plane_bytes()
    }

    /// Bytes from a term to the next.
    pub fn plane_bytes(&self) -> usize {
        self.channel_blocks * self.block_bytes
    }

    pub fn ring_bytes(&self) -> usize {
        self.slots * self.row_bytes()
    }

    pub fn row_pairs(&self) -> usize {
        self.height.div_ceil(2)
    }

    /// The input rows of some pairs of rows; those outside the picture are zeros.
    pub fn input_rows(&self, pairs: Range<usize>) -> Range<isize> {
        let reach = self.reach();
        let row = |pair: usize| (2 * pair * self.stride) as isize;
        row(pairs.start) + reach.start..row(pairs.end) - self.stride as isize + reach.end
    }

    /// Where the ring keeps an input row.
    pub fn slot(&self, row: isize) -> usize {
        (row - self.reach().start) as usize % self.slots
    }

    /// Pairs of blocks of outputs; the last may be a single one.
    pub fn pairs(&self) -> usize {
        self.out_blocks.div_ceil(2)
    }

    /// Blocks of a pair.
    pub fn blocks_of(&self, pair: usize) -> usize {
        (self.out_blocks - 2 * pair).min(2)
    }

    pub fn phases(&self) -> impl Iterator<Item = Phase> + use<> {
        let n = self.spread;
        (0..n * n).map(move |i| Phase { row: i / n, column: i % n })
    }

    fn taps(&self) -> usize {
        match (self.kernel, self.sampling) {
            (1, _) => 1,
            (_, Sampling::Up) => 2,
            _ => 3,
        }
    }

    /// Positions of a window.
    pub fn positions(&self) -> usize {
        self.taps() * self.taps()
    }

    /// Steps of a product: for each block of channels the positions of the window, row by row.
    pub fn steps(&self) -> usize {
        self.channel_blocks * self.positions()
    }

    /// Bytes of the weights of a block of outputs, all phases.
    fn out_block_bytes(&self) -> usize {
        self.spread * self.spread * self.steps() * self.terms * BLOCK
    }

    fn pair_bytes(&self) -> usize {
        2 * self.out_block_bytes()
    }

    /// Where the weights of a pair of output blocks begin.
    pub fn pair_at(&self, pair: usize) -> usize {
        pair * self.pair_bytes()
    }

    pub fn weight_bytes(&self) -> usize {
        self.out_blocks * self.out_block_bytes()
    }

    /// Sums and sums of squares of the outputs, in whole blocks, for each pair of rows of each strip.
    pub fn sums(&self) -> usize {
        self.row_pairs().saturating_mul(self.strips).saturating_mul(2 * self.out_blocks * TILE)
    }

    /// Bytes that tasks share besides the weights: sums, biases and the normalization.
    pub fn shared_bytes(&self) -> usize {
        let numbers = self.out_blocks * TILE + 2 * self.channel_blocks * self.step;
        self.sums().saturating_mul(size_of::<f64>()).saturating_add(numbers * size_of::<f32>())
    }

    /// The rows (columns) of the 3x3 weights that position `tap` of a phase's window takes the sum of.
    pub fn kernel_rows(&self, phase: usize, tap: usize) -> Range<usize> {
        match (self.sampling, phase, tap) {
            (Sampling::Up, 0, 0) => 0..1,
            (Sampling::Up, 0, _) => 1..3,
            (Sampling::Up, _, 0) => 0..2,
            (Sampling::Up, _, _) => 2..3,
            _ => tap..tap + 1,
        }
    }

    /// The window's positions of a phase in the order of the steps: row and column.
    pub fn window(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let taps = self.taps();
        (0..self.channel_blocks).flat_map(move |_| (0..taps * taps).map(move |i| (i / taps, i % taps)))
    }

    /// The places in the ring that each step of `phase` reads, for the two rows of a pair, from the place of the first
    /// position on.
    pub fn places(&self, pair: usize, phase: Phase) -> impl Iterator<Item = [u32; 2]> {
        let first = self.reach().start;
        let rows = [2 * pair, (2 * pair + 1).min(self.height - 1)].map(|row| (row * self.stride) as isize);
        self.window().enumerate().map(move |(step, (ty, tx))| {
            let at = step / self.positions() * self.block_bytes + (phase.column + tx) * LINE;
            rows.map(|row| (self.slot(row + first + (phase.row + ty) as isize) * self.row_bytes() + at) as u32)
        })
    }
}
