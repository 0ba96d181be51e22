//! Forward passes on both: the first layers on the processor, the others and the output on a graphics card, for models that
//! its memory is too small for.

use std::ops::Range;

use super::backend::{Backend, Buffer, Source};
use super::cpu::Cpu;
use super::cuda::Cuda;
use super::layout::Layout;
use super::transformer::SequenceRequest;
use super::weights::TensorRef;
use crate::error::Result;
use crate::kernels::Epilogue;

/// A pass that changes over at the card's first layer.
pub struct Offload<'a> {
    cpu: Cpu<'a>,
    cuda: Cuda<'a>,
    /// whether the residual stream is on the card
    is_over: bool,
}

impl<'a> Offload<'a> {
    pub fn new(cpu: Cpu<'a>, cuda: Cuda<'a>) -> Self {
        Offload { cpu, cuda, is_over: false }
    }

    /// The part that is on the card.
    pub fn cuda(&mut self) -> &mut Cuda<'a> {
        &mut self.cuda
    }

    fn now(&mut self) -> &mut dyn Backend {
        if self.is_over { &mut self.cuda } else { &mut self.cpu }
    }
}

impl Backend for Offload<'_> {
    fn begin(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()> {
        self.is_over = false;
        self.cpu.begin(batch, all)?;
        self.cuda.begin(batch, all)
    }

    fn layout(&self) -> &Layout {
        if self.is_over { self.cuda.layout() } else { self.cpu.layout() }
    }

    fn check(&self) -> Result<()> {
        self.cpu.check()
    }

    fn enter(&mut self, layer: usize, rows: usize) -> Result<()> {
        if !self.is_over && layer >= self.cuda.first_layer() {
            let cuda = &mut self.cuda;
            let mut copied = Ok(());
            self.cpu.read(Buffer::X, rows * cuda.d_model(), &mut |x| copied = cuda.write(Buffer::X, x))?;
            copied?;
            self.is_over = true;
        }
        Ok(())
    }

    fn embed(&mut self, table: &TensorRef, batch: &[SequenceRequest]) -> Result<()> {
        self.now().embed(table, batch)
    }

    fn input(
        &mut self,
        from: Source<&TensorRef>,
        rows: usize,
        matrices: &[&TensorRef],
        seen: bool,
    ) -> Result<Option<Buffer>> {
        self.now().input(from, rows, matrices, seen)
    }

    fn project(&mut self, w: &TensorRef, to: Buffer, epilogue: Epilogue) -> Result<()> {
        self.now().project(w, to, epilogue)
    }

    fn rotate(&mut self, buffer: Buffer, rows: usize) -> Result<()> {
        self.now().rotate(buffer, rows)
    }

    fn keep_wanted(&mut self) -> Result<()> {
        self.now().keep_wanted()
    }

    fn attention(&mut self, cut: bool) -> Result<()> {
        self.now().attention(cut)
    }

    fn norm(&mut self, weight: &TensorRef, rows: usize) -> Result<()> {
        self.now().norm(weight, rows)
    }

    fn gather(&mut self, batch: &[SequenceRequest], sequences: Range<usize>) -> Result<usize> {
        self.now().gather(batch, sequences)
    }

    fn logits(&mut self, w: &TensorRef, ids: Range<u32>, out: &mut [f32]) -> Result<()> {
        self.now().logits(w, ids, out)
    }

    fn read(&mut self, buffer: Buffer, len: usize, look: &mut dyn FnMut(&[f32])) -> Result<()> {
        self.now().read(buffer, len, look)
    }
}
