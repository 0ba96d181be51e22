//! Products of weights and activations, each compared with the processor's before it is timed.

use mmada::kernels::cuda::operations::{self as ops, Int8, Int8Memory, Source, Weights};
use mmada::kernels::cuda::{Memory, Queue, Unpacked};
use mmada::kernels::{Activations, Arithmetic, Epilogue, Int8Rows, Kernels, Scales, matmul};
use mmada::parallel::{Exec, Threads};
use mmada::tensor::{self, GgmlType, Matrix};

use crate::options::Options;
use crate::timing::{Failures, Outcome, WHAT, best, floats, line, upload};

/// Straight from the blocks of a file: int8 where contexts multiply so, and with the first shape bfloat16 too.
pub fn from_blocks(o: &Options, queue: &Queue, failures: &mut Failures) -> Outcome<()> {
    for (dtype, shapes, n) in o.products()? {
        for &shape in shapes {
            failures.note(
                &format!("products of {dtype}"),
                Case::new(o, queue, dtype, shape).and_then(|case| {
                    n.iter().try_for_each(|&n| {
                        case.int8(n, None)?;
                        if case.is_float() || o.is_first(shape, n) { case.bf16(n, None) } else { Ok(()) }
                    })
                }),
            );
        }
    }
    Ok(())
}

/// Of weights that were unpacked first, as contexts on Hopper have them.
pub fn unpacked(o: &Options, queue: &Queue, failures: &mut Failures) -> Outcome<()> {
    if !queue.gpu().has_hopper() {
        println!("{} does not have the kernels for Hopper: nothing is unpacked", queue.gpu().name());
        return Ok(());
    }
    for (dtype, shapes, n) in o.products()? {
        for &shape in shapes {
            let outcome = Case::new(o, queue, dtype, shape).and_then(|case| case.hopper(n));
            failures.note(&format!("products of unpacked {dtype}"), outcome);
        }
    }
    Ok(())
}

/// A matrix of weights and rows of activations.
struct Case<'a> {
    o: &'a Options,
    queue: &'a Queue,
    dtype: GgmlType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    w: Memory<u8>,
    /// as many tokens as there may be
    x: Memory<f32>,
    threads: Threads,
}

impl<'a> Case<'a> {
    fn new(o: &'a Options, queue: &'a Queue, dtype: GgmlType, (rows, cols): (usize, usize)) -> Outcome<Self> {
        let bytes = weights(dtype, rows, cols)?;
        let (w, x) = (upload(queue, &bytes)?, upload(queue, &floats(0..o.most_tokens() * cols))?);
        Ok(Case { o, queue, dtype, rows, cols, bytes, w, x, threads: Threads::new(0)? })
    }

    /// Whether it is multiplied in bfloat16 by contexts.
    fn is_float(&self) -> bool {
        !matches!(ops::arithmetic(self.dtype), Arithmetic::Int8(_))
    }

    fn weights(&self) -> Outcome<Weights<'_>> {
        Ok(Weights::new(self.dtype, self.rows, self.cols, self.w.all())?)
    }

    fn hopper(&self, n: &[usize]) -> Outcome<()> {
        let (w, Case { dtype, rows, cols, .. }) = (self.weights()?, self);
        let Some(unpacked) = Unpacked::new(self.queue, w)? else { return Ok(()) };
        let seconds = best(self.o.quick, self.queue, || Unpacked::new(self.queue, w).map(drop))?;
        line(&format!("unpacking {dtype} {rows}x{cols}"), 1e3 * seconds, "ms");
        for &n in n.iter().filter(|&&n| unpacked.pays(n)) {
            match w.with_unpacked(Some(&unpacked)).arithmetic(n) {
                Arithmetic::Int8(_) => self.int8(n, Some(&unpacked))?,
                _ => self.bf16(n, Some(&unpacked))?,
            }
        }
        Ok(())
    }

    /// Prints how fast a kind of product is.
    fn line(&self, kind: &str, n: usize, unpacked: bool, seconds: f64) {
        let Case { dtype, rows, cols, .. } = self;
        let hopper = if unpacked { "hopper " } else { "" };
        let work = 2e-12 * (n * rows) as f64 * *cols as f64;
        line(&format!("{hopper}product {kind} {dtype} {rows}x{cols} n={n}"), work / seconds, "TFLOP/s");
    }

    /// Nothing for a type that has no such product.
    fn int8(&self, n: usize, unpacked: Option<&Unpacked>) -> Outcome<()> {
        let Arithmetic::Int8(scales) = ops::arithmetic(self.dtype) else { return Ok(()) };
        let Case { queue, cols: k, .. } = *self;
        let (memory, y) = (Int8Memory::new(queue, n, k)?, Memory::new(queue.gpu(), n * self.rows, WHAT)?);
        let rows = Int8 { memory: &memory, n, k, scales };
        ops::quantize(queue, Source::Plain(self.x.part(0..n * k)), rows)?;
        let w = self.weights()?.with_unpacked(unpacked);
        let product = || ops::product_int8(queue, w, rows, y.all(), Epilogue::Store);
        product()?;
        self.check_int8(&y, n, scales)?;
        self.line("int8", n, unpacked.is_some(), best(self.o.quick, queue, product)?);
        Ok(())
    }

    fn bf16(&self, n: usize, unpacked: Option<&Unpacked>) -> Outcome<()> {
        let Case { queue, cols: k, .. } = *self;
        let (x, y) = (Memory::new(queue.gpu(), n * k, WHAT)?, Memory::new(queue.gpu(), n * self.rows, WHAT)?);
        ops::round(queue, Source::Plain(self.x.part(0..n * k)), n, k, x.all())?;
        let w = self.weights()?.with_unpacked(unpacked);
        let product = || ops::product_bf16(queue, w, (x.all(), k, n), None, y.all(), Epilogue::Store);
        product()?;
        self.check_bf16(&y, n)?;
        self.line("bf16", n, unpacked.is_some(), best(self.o.quick, queue, product)?);
        Ok(())
    }

    /// The results of the last token, and that token.
    fn last_token(&self, y: &Memory<f32>, n: usize) -> Outcome<(Vec<f32>, Vec<f32>)> {
        let mut got = vec![0.0; self.rows];
        self.queue.read(y.part((n - 1) * self.rows..n * self.rows), &mut got)?;
        Ok((got, floats((n - 1) * self.cols..n * self.cols)))
    }

    /// The results of the last token are the processor's to the bit.
    fn check_int8(&self, y: &Memory<f32>, n: usize, scales: Scales) -> Outcome<()> {
        let exec = Exec::new(&self.threads, Kernels::best(), None);
        let (got, token) = self.last_token(y, n)?;
        let (mut x, mut expected) = (Int8Rows::default(), vec![0.0f32; self.rows]);
        x.quantize(&exec, &token, self.cols, scales)?;
        let w = Matrix::new(self.dtype, self.rows, self.cols, &self.bytes).ok_or("a matrix")?;
        matmul(&exec, &w, Activations::Int8(&x), &mut expected, self.rows, Epilogue::Store)?;
        self.right("int8", n, got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()))
    }

    /// Some results of the last token are no further from those in f32 than rounding to bfloat16 explains.
    fn check_bf16(&self, y: &Memory<f32>, n: usize) -> Outcome<()> {
        let (got, x) = self.last_token(y, n)?;
        let row_bytes = self.bytes.len() / self.rows;
        let mut w = vec![0.0; self.cols];
        let mut is_right = true;
        for (row, got) in got.iter().enumerate().step_by(self.rows / 16) {
            tensor::dequantize(self.dtype, &self.bytes[row * row_bytes..][..row_bytes], &mut w)?;
            let (mut sum, mut squares) = (0.0f64, 0.0f64);
            for (w, x) in w.iter().zip(&x) {
                let product = f64::from(*w) * f64::from(*x);
                (sum, squares) = (sum + product, squares + product * product);
            }
            is_right &= (f64::from(*got) - sum).abs() <= 0.03 * squares.sqrt();
        }
        self.right("bf16", n, is_right)
    }

    fn right(&self, kind: &str, n: usize, is_right: bool) -> Outcome<()> {
        let Case { dtype, rows, cols, .. } = self;
        match is_right {
            true => Ok(()),
            false => {
                Err(format!("the {kind} product of {rows}x{cols} {dtype} with {n} tokens is not the processor's")
                    .into())
            }
        }
    }
}

/// Random rows: a few in turn, as quantizing all of them takes longer than everything else.
fn weights(dtype: GgmlType, rows: usize, cols: usize) -> Outcome<Vec<u8>> {
    const DIFFERENT: usize = 64;
    let row = dtype.row_bytes(cols).ok_or("rows of whole blocks")?;
    let mut few = vec![0; DIFFERENT * row];
    let x = floats(0..DIFFERENT * cols);
    for (x, row) in x.chunks_exact(cols).zip(few.chunks_exact_mut(row)) {
        Kernels::best().quantize(dtype, x, None, row)?;
    }
    let mut all = few.repeat(rows.div_ceil(DIFFERENT));
    all.truncate(rows * row);
    Ok(all)
}
