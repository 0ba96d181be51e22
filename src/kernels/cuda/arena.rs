//! Weights on their way to a card: copied once, in large pieces, from where a file is mapped.

use std::collections::HashMap;
use std::sync::Arc;

use super::device::Gpu;
use super::memory::{Memory, Part, Pinned};
use super::queue::Queue;
use crate::error::{Error, Result};
use crate::memory::{try_push, try_reserve_entry};

/// Where each tensor begins: what vectorized reads and ldmatrix ask for, and more.
const ALIGNMENT: usize = 256;
/// Bytes that are on their way at a time, twice: one piece is read from the file while the other is copied.
const PIECE: usize = 16 << 20;

/// Tensors in one allocation, by where they begin in their file.
pub struct Arena {
    memory: Memory<u8>,
    begins: HashMap<usize, usize>,
}

impl Arena {
    /// Bytes that tensors of these sizes take.
    pub fn bytes(sizes: impl IntoIterator<Item = usize>) -> usize {
        sizes.into_iter().fold(0, |sum, size| sum.saturating_add(size.next_multiple_of(ALIGNMENT)))
    }

    /// Copies tensors, each with where it begins in its file. `progress` is told how many bytes have been copied, of how
    /// many.
    ///
    /// # Errors
    /// `OutOfMemory` with the bytes of all of them; `Device`; `Cancelled` if `progress` returns false.
    pub fn new<'a>(
        gpu: &Arc<Gpu>,
        tensors: impl IntoIterator<Item = (usize, &'a [u8])>,
        what: &str,
        progress: Option<&dyn Fn(u64, u64) -> bool>,
    ) -> Result<Arena> {
        let mut list = Vec::new();
        let mut begins = HashMap::new();
        let mut end = 0;
        for (begin, bytes) in tensors {
            try_push(&mut list, (end, bytes), what)?;
            try_reserve_entry(&mut begins, what)?;
            begins.insert(begin, end);
            end += bytes.len().next_multiple_of(ALIGNMENT);
        }
        let memory = Memory::new(gpu, end, what)?;
        let mut lanes = [Lane::new(gpu, end, what)?, Lane::new(gpu, end, what)?];
        let (total, mut done) = (list.iter().map(|(_, bytes)| bytes.len() as u64).sum(), 0);
        let told = |done| progress.is_none_or(|progress| progress(done, total));
        let mut turn = 0;
        for (at, bytes) in list {
            for (i, piece) in bytes.chunks(PIECE).enumerate() {
                if !told(done) {
                    return Err(Error::Cancelled);
                }
                let at = at + i * PIECE;
                lanes[turn].send(memory.part(at..at + piece.len()), piece)?;
                turn = 1 - turn;
                done += piece.len() as u64;
            }
        }
        lanes.iter().try_for_each(|lane| lane.queue.wait())?;
        if told(done) { Ok(Arena { memory, begins }) } else { Err(Error::Cancelled) }
    }

    /// The `len` bytes of the tensor that begins at `begin` in its file.
    ///
    /// # Errors
    /// `Internal` for one that was not copied.
    pub fn bytes_of(&self, begin: usize, len: usize) -> Result<Part<'_, u8>> {
        let missing = || Error::Internal(format!("the tensor at byte {begin} of the file is not on the graphics card"));
        let at = *self.begins.get(&begin).ok_or_else(missing)?;
        Ok(self.memory.part(at..at + len))
    }
}

/// Memory that a card reads by itself, and the queue that says when it has.
struct Lane {
    queue: Queue,
    piece: Pinned<u8>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        // a copy may be on its way from the piece, where others were not waited for because of an error
        let _ = self.queue.wait();
    }
}

impl Lane {
    fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Lane> {
        Ok(Lane { queue: Queue::new(gpu)?, piece: Pinned::new(gpu, PIECE.min(bytes), what)? })
    }

    fn send(&mut self, to: Part<'_, u8>, bytes: &[u8]) -> Result<()> {
        self.queue.wait()?; // the piece before has been copied
        self.piece[..bytes.len()].copy_from_slice(bytes);
        self.queue.write_pinned(to, &self.piece, bytes.len())
    }
}
