//! Matrix products in tiles: two times two of them, 32 rows of weights and 32 of activations.

use super::{Amx, Cells, Operands, TILE, Tiles};
use crate::kernels::activations::{BF16_STEP, Int8Rows, STEP, STEP_BYTES};
use crate::kernels::avx512::Avx512;
use crate::kernels::int8;
use crate::kernels::isa::{Isa, LANES, Op};
use crate::kernels::product::{Activations, Bf16Block, Bf16Tiles, Panel, Scratch};

/// A panel with the memory of the thread that computes it.
pub struct AmxPanel<'a> {
    pub amx: Amx,
    pub panel: Panel<'a>,
    pub scratch: &'a mut Scratch,
}

impl Op for AmxPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let AmxPanel { amx, panel, scratch } = self;
        let tiles = amx.tiles();
        match panel.x {
            Activations::Int8(x) => int8(amx, &tiles, &panel, x, scratch),
            Activations::Bf16(x) => panel.bf16(isa, WithTiles { amx, tiles: &tiles }, x, scratch),
            Activations::F32 { .. } => unreachable!("float activations have no tiles"),
        }
    }
}

/// int8 with wide scales.
#[inline(always)]
fn int8(amx: Amx, tiles: &Tiles, panel: &Panel, x: &Int8Rows, scratch: &mut Scratch) {
    let isa = amx.base;
    panel.clear(TILE, scratch);
    for place in panel.places(int8::CHUNK, TILE) {
        let block = panel.int8_block(isa, &place, x, false, scratch);
        // SAFETY: the panel holds its rows and groups, `x` the blocks, `acc` rows * columns floats
        unsafe { int8_tiles(isa, tiles, &block) };
    }
    panel.write(isa, &scratch.acc);
}

/// Calls `$tile::<ROWS, COLUMNS>` for all of `$rows` rows and `$blocks` blocks, two tiles each way where there are two.
macro_rules! all_tiles {
    ($rows:expr, $blocks:expr, $tile:ident, $($arg:expr),+) => {{
        let mut block = 0;
        while block + 2 <= $blocks {
            let mut row = 0;
            while row + 2 * TILE <= $rows {
                $tile::<2, 2>($($arg),+, row, block);
                row += 2 * TILE;
            }
            if row < $rows {
                $tile::<1, 2>($($arg),+, row, block);
            }
            block += 2;
        }
        if block < $blocks {
            let mut row = 0;
            while row + 2 * TILE <= $rows {
                $tile::<2, 1>($($arg),+, row, block);
                row += 2 * TILE;
            }
            if row < $rows {
                $tile::<1, 1>($($arg),+, row, block);
            }
        }
    }};
}

/// The sums of two times two tiles.
#[repr(align(64))]
struct Sums([i32; 4 * TILE * TILE]);

/// # Safety
/// As [`int8::tiles`], with tiles of 16 rows and groups of whole steps.
#[inline(always)]
unsafe fn int8_tiles(isa: Avx512, tiles: &Tiles, p: &int8::Block) {
    let mut sums = [const { Sums([0; 4 * TILE * TILE]) }; 2];
    // SAFETY: every tile lies inside the rows and blocks, the rest is the caller's promise
    unsafe { all_tiles!(p.rows, p.blocks, int8_tile, isa, tiles, p, &mut sums) }
}

/// Sums of a group are computed while those of the group before leave: the vector instructions stand behind the tile
/// instructions that they do not depend on, so that both units are busy.
///
/// # Safety
/// As [`int8_tiles`], for ROWS * 16 rows and COLUMNS blocks.
#[inline(always)]
unsafe fn int8_tile<const ROWS: usize, const COLUMNS: usize>(
    isa: Avx512,
    tiles: &Tiles,
    p: &int8::Block,
    sums: &mut [Sums; 2],
    row: usize,
    block: usize,
) {
    let steps = p.k.div_ceil(STEP);
    let group = p.shape.group / STEP;
    let x = p.x.cells(p.first_block + block, p.k0 / STEP);
    // SAFETY: the caller's promise
    unsafe {
        for g in 0..=p.groups {
            if g < p.groups {
                let operands = Operands {
                    a: p.weights.q.as_ptr().add((g * group * p.panel_rows + row) * STEP).cast(),
                    a_step: p.panel_rows * STEP,
                    b: x.add(g * group * STEP_BYTES),
                    b_block: p.x.block_bytes(),
                    steps: group.min(steps - g * group),
                    c: sums[g % 2].0.as_mut_ptr().cast(),
                    c_row: COLUMNS * TILE * 4,
                };
                tiles.multiply::<ROWS, COLUMNS>(Cells::Int8, operands, false);
            }
            if g > 0 {
                leave::<ROWS, COLUMNS>(isa, p, &sums[(g - 1) % 2], g - 1, row, block);
            }
        }
    }
}

/// The sums of a group to floats: `acc += scale * (scale of x) * sum`.
///
/// # Safety
/// As [`int8_tile`].
#[inline(always)]
unsafe fn leave<const ROWS: usize, const COLUMNS: usize>(
    isa: Avx512,
    p: &int8::Block,
    sums: &Sums,
    g: usize,
    row: usize,
    block: usize,
) {
    // SAFETY: the caller's promise
    unsafe {
        let acc = p.acc.add(row * p.acc_row + block * LANES);
        for v in 0..COLUMNS {
            let x_scale = int8::scale_of_x(isa, p, p.shape.group, (g, block + v));
            for m in 0..ROWS * TILE {
                let to = &mut *acc.add(m * p.acc_row + v * LANES).cast::<[f32; LANES]>();
                let sum = isa.load_i32(&*sums.0.as_ptr().add((m * COLUMNS + v) * TILE).cast());
                let at = (row + m) * int8::groups(p.shape.group) + g;
                let scale = isa.mul(isa.splat(*p.weights.scale.get_unchecked(at)), x_scale);
                isa.store(isa.fused(isa.to_f32(sum), scale, isa.load(to)), to);
            }
        }
    }
}

/// Products in bfloat16 on configured tiles.
#[derive(Clone, Copy)]
struct WithTiles<'a> {
    amx: Amx,
    tiles: &'a Tiles,
}

impl Bf16Tiles for WithTiles<'_> {
    const ROWS: usize = TILE;

    #[inline(always)]
    fn round(self, from: &[f32; BF16_STEP], to: &mut [u16; BF16_STEP]) {
        self.amx.bf16.round(from, to);
    }

    #[inline(always)]
    unsafe fn tiles(self, p: &Bf16Block) {
        // SAFETY: every tile lies inside the rows and blocks, the rest is the caller's promise
        unsafe { all_tiles!(p.rows, p.blocks, bf16_tile, self.tiles, p) }
    }
}

/// # Safety
/// As [`Bf16Tiles::tiles`], for ROWS * 16 rows and COLUMNS blocks.
#[inline(always)]
unsafe fn bf16_tile<const ROWS: usize, const COLUMNS: usize>(tiles: &Tiles, p: &Bf16Block, row: usize, block: usize) {
    // SAFETY: the caller's promise
    unsafe {
        let operands = Operands {
            a: p.panel.add(row * BF16_STEP).cast(),
            a_step: p.panel_rows * 2 * BF16_STEP,
            b: p.x.add(block * p.x_block),
            b_block: p.x_block,
            steps: p.steps,
            c: p.acc.add(row * p.acc_row + block * LANES).cast(),
            c_row: p.acc_row * 4,
        };
        tiles.multiply::<ROWS, COLUMNS>(Cells::Bf16, operands, true);
    }
}
