//! Weights that Hopper's kernels multiply (hopper.cu): unpacked from their blocks once, when they have come to the card, for a
//! byte of memory each. Results are the same to the bit; without the memory, products unpack on the way. Floats take two
//! bytes, and so does Q6_K, whose groups of 16 are too short for an int8 product of wgmma, which sums 32: it is multiplied in
//! bfloat16, at half the rate, where the other kernels would unpack it for every tile.

use super::memory::{Memory, Part};
use super::operations::{Int8, Weights, adds, arithmetic, check};
use super::queue::{Argument, Grid, Queue};
use super::tensor_map::TensorMap;
use crate::error::Result;
use crate::kernels::activations::Scales;
use crate::kernels::product::Epilogue;
use crate::kernels::unpack::Arithmetic;
use crate::tensor::GgmlType;

/// A matrix of weights, unpacked for the arithmetic that its type has on a card.
pub struct Unpacked {
    form: Form,
    rows: usize,
    cols: usize,
    /// of `data`
    map: TensorMap,
    /// [rows, cols] in int8, or [rows, cols filled up to a multiple of 8] in bfloat16
    data: Memory<u8>,
    /// [rows, groups]
    scale: Memory<f32>,
    offset: Memory<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Bf16,
    Wide,
    Blocks { offset: bool },
}

/// Tokens from which on Hopper's tiles, which are large, are the faster ones.
const LEAST_TOKENS: usize = 64;
const WHAT: &str = "unpacked weights";
const ROWS: usize = 128;

impl Form {
    fn of(dtype: GgmlType) -> Form {
        use GgmlType::*;
        match (arithmetic(dtype), dtype) {
            (Arithmetic::Int8(Scales::Wide), _) => Form::Wide,
            (Arithmetic::Bf16 | Arithmetic::F32, _) | (_, Q6_K | Q3_K | Q2_K) => Form::Bf16,
            (Arithmetic::Int8(_), _) => Form::Blocks { offset: matches!(dtype, Q4_1 | Q5_1 | Q4_K | Q5_K) },
        }
    }

    /// Bytes of data in a row, and numbers of scales.
    fn row(self, cols: usize) -> (usize, usize) {
        match self {
            Form::Bf16 => (2 * cols.next_multiple_of(8), 0),
            Form::Wide => (cols, cols.div_ceil(256)),
            Form::Blocks { .. } => (cols, cols / 32),
        }
    }
}

impl Unpacked {
    /// Bytes that `new` takes.
    pub fn bytes(dtype: GgmlType, rows: usize, cols: usize) -> usize {
        let form = Form::of(dtype);
        let (data, scales) = form.row(cols);
        let arrays = if form == (Form::Blocks { offset: true }) { 2 } else { 1 };
        rows.saturating_mul(data.saturating_add(4 * arrays * scales))
    }

    /// Queues the unpacking of `w`; `None` if there is nothing of it.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`.
    pub fn new(queue: &Queue, w: Weights) -> Result<Option<Unpacked>> {
        let (dtype, rows, cols) = (w.dtype(), w.rows(), w.cols());
        if rows * cols == 0 {
            return Ok(None);
        }
        let form = Form::of(dtype);
        let (data, scales) = form.row(cols);
        let gpu = queue.gpu();
        let offsets = if form == (Form::Blocks { offset: true }) { rows * scales } else { 0 };
        let memory = Memory::new(gpu, rows.saturating_mul(data), WHAT)?;
        let to = Unpacked {
            form,
            rows,
            cols,
            map: TensorMap::new(gpu, memory.all(), data, ROWS)?,
            data: memory,
            scale: Memory::new(gpu, rows.saturating_mul(scales), WHAT)?,
            offset: Memory::new(gpu, offsets, WHAT)?,
        };
        let name = match form {
            Form::Bf16 => format!("unpack_{}_bf16", dtype.name()),
            Form::Wide => format!("unpack_{}_wide", dtype.name()),
            Form::Blocks { .. } => format!("unpack_{}_blocks", dtype.name()),
        };
        let units = match form {
            Form::Wide => rows * scales * 8,
            _ => rows * cols.div_ceil(32),
        };
        let [data_at, row_bytes] = w.place();
        let mut arguments = vec![data_at, row_bytes, (rows as i32).into(), (cols as i32).into(), to.data.all().into()];
        match form {
            Form::Bf16 => arguments.push((cols.next_multiple_of(8) as i32).into()),
            Form::Wide => arguments.push(to.scale.all().into()),
            Form::Blocks { .. } => arguments.extend([Argument::from(to.scale.all()), to.offset.all().into()]),
        }
        let grid = Grid { blocks: [units.div_ceil(256), 1, 1], threads: 256, shared: 0 };
        // SAFETY: as many rows, weights and scales as the kernel goes over, from the matrix that `w` is
        unsafe { queue.launch(&name, grid, &mut arguments) }?;
        Ok(Some(to))
    }

    /// Whether products with so many tokens are worth its kernels.
    pub fn pays(&self, tokens: usize) -> bool {
        tokens >= LEAST_TOKENS
    }

    /// [`product_int8`](super::operations::product_int8) of rows from `first` on, as many as `y` has.
    pub(super) fn product_int8(
        &self,
        queue: &Queue,
        (first, rows): (usize, usize),
        x: Int8,
        y: Part<'_, f32>,
        epilogue: Epilogue,
    ) -> Result<()> {
        let (_, scales) = self.form.row(self.cols);
        let right = first + rows <= self.rows && x.k == self.cols && y.len() == x.n * rows;
        let wide = x.scales == Scales::Wide;
        check(right && (self.form == Form::Wide) == wide && self.form != Form::Bf16, "an int8 product")?;
        let (name, tokens, shared) = match self.form {
            Form::Wide if x.n > 128 => ("product_wide_256_sm90", 256, 203_904),
            Form::Wide => ("product_wide_128_sm90", 128, 203_968),
            Form::Blocks { offset: true } => ("product_blocks_offset_sm90", 128, 164_928),
            _ => ("product_blocks_sm90", 128, 148_608),
        };
        let at = first * scales..(first + rows) * scales;
        let offset = if self.offset.is_empty() { self.offset.all() } else { self.offset.part(at.clone()) };
        let grid = tiles(queue, (rows, x.n), tokens, shared);
        if grid.is_empty() {
            return Ok(());
        }
        let map = TensorMap::new(queue.gpu(), x.memory.rows(x.n, x.k), x.k, tokens)?;
        let [_, scale, sums] = x.memory.arguments();
        let mut arguments: [Argument; 13] = [
            (&self.map).into(),
            (&map).into(),
            (first as i32).into(),
            (rows as i32).into(),
            (x.n as i32).into(),
            (self.cols as i32).into(),
            self.scale.part(at).into(),
            offset.into(),
            scale,
            sums,
            y.into(),
            (rows as i32).into(),
            adds(epilogue).into(),
        ];
        // SAFETY: weights, scales, activations and results of the sizes that were checked, which the kernel keeps to
        unsafe { queue.launch(name, grid, &mut arguments) }
    }

    /// [`product_bf16`](super::operations::product_bf16) likewise; sizes of activations were checked.
    pub(super) fn product_bf16(
        &self,
        queue: &Queue,
        (first, rows): (usize, usize),
        (x, x_stride, n): (Part<'_, u16>, usize, usize),
        bias: Option<Part<'_, f32>>,
        y: Part<'_, f32>,
        epilogue: Epilogue,
    ) -> Result<()> {
        check(first + rows <= self.rows && self.form == Form::Bf16, "a product")?;
        let (name, tokens, shared) =
            if n > 128 { ("product_bf16_256_sm90", 256, 197_712) } else { ("product_bf16_128_sm90", 128, 197_744) };
        let grid = tiles(queue, (rows, n), tokens, shared);
        if grid.is_empty() {
            return Ok(());
        }
        let map = TensorMap::new(queue.gpu(), x.bytes(), 2 * x_stride, tokens)?;
        let mut arguments: [Argument; 10] = [
            (&self.map).into(),
            (&map).into(),
            (first as i32).into(),
            (rows as i32).into(),
            (n as i32).into(),
            (self.cols as i32).into(),
            bias.into(),
            y.into(),
            (rows as i32).into(),
            adds(epilogue).into(),
        ];
        // SAFETY: weights, activations and results of the sizes that were checked, which the kernel keeps to
        unsafe { queue.launch(name, grid, &mut arguments) }
    }

    /// Whether it is in bfloat16.
    pub(super) fn is_bf16(&self) -> bool {
        self.form == Form::Bf16
    }
}

/// As many blocks as the queue has for them, which go through the tiles in turn.
fn tiles(queue: &Queue, (rows, n): (usize, usize), tokens: usize, shared: usize) -> Grid {
    let tiles = rows.div_ceil(ROWS) * n.div_ceil(tokens);
    Grid { blocks: [tiles.min(queue.blocks()), 1, 1], threads: 384, shared }
}
