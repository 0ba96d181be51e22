//! A card's memory, parts of it that kernels are given, and memory of the host that cards reach.

use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};

use super::device::Gpu;
use super::queue::Queue;
use crate::error::{Error, Result};

/// `len` numbers in a card's memory. What they are at first is not defined.
pub struct Memory<T> {
    gpu: Arc<Gpu>,
    at: CUdeviceptr,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> Memory<T> {
    /// # Errors
    /// `OutOfMemory`, naming what it is for, the card, and what is free there.
    pub fn new(gpu: &Arc<Gpu>, len: usize, what: &str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut memory = Memory { gpu: gpu.clone(), at: 0, len, kind: PhantomData };
        if bytes == 0 {
            return Ok(memory);
        }
        let _entered = gpu.enter()?;
        // SAFETY: the context is current; the pointer outlives the call
        match unsafe { sys::cuMemAlloc_v2(&mut memory.at, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { what: format!("{what} on {}", gpu.name_with_free()), bytes })
            }
            status => gpu.check(status, &format!("give {bytes} bytes")).map(|()| memory),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it, to be read or written by kernels. Panics if that is not within.
    pub fn part(&self, range: std::ops::Range<usize>) -> Part<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} numbers", self.len);
        Part { at: self.at + (range.start * size_of::<T>()) as u64, len: range.len(), owner: PhantomData }
    }

    /// All of it.
    pub fn all(&self) -> Part<'_, T> {
        self.part(0..self.len)
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if self.at != 0
            && let Ok(_entered) = self.gpu.enter()
        {
            // SAFETY: it came from cuMemAlloc and is freed once. The driver waits for kernels that are running. There is
            // nobody to tell of an error, which a lost device gives.
            let _ = unsafe { sys::cuMemFree_v2(self.at) };
        }
    }
}

/// Some numbers in a card's memory.
#[derive(Debug)]
pub struct Part<'a, T> {
    at: CUdeviceptr,
    len: usize,
    owner: PhantomData<&'a T>,
}

impl<T> Clone for Part<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Part<'_, T> {}

impl<T> Part<'_, T> {
    /// Where they begin.
    pub(super) fn address(&self) -> u64 {
        self.at
    }
}

impl<'a> Part<'a, u8> {
    /// The same bytes as numbers.
    ///
    /// # Errors
    /// `Internal` where they are not whole ones, or begin between two.
    pub fn cast<T: Pod>(self) -> Result<Part<'a, T>> {
        let size = size_of::<T>();
        if !self.len.is_multiple_of(size) || !self.at.is_multiple_of(size as u64) {
            return Err(Error::Internal(format!("{} bytes of a graphics card as numbers of {size}", self.len)));
        }
        Ok(Part { at: self.at, len: self.len / size, owner: PhantomData })
    }
}

impl<'a, T: Pod> Part<'a, T> {
    /// The same numbers as bytes.
    pub fn bytes(self) -> Part<'a, u8> {
        Part { at: self.at, len: self.len * size_of::<T>(), owner: PhantomData }
    }
}

impl<T: Pod> Part<'_, T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers of `range` within it. Panics if they are not.
    pub fn part(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} numbers", self.len);
        Part { at: self.at + (range.start * size_of::<T>()) as u64, len: range.len(), owner: PhantomData }
    }
}

/// Numbers in host memory that a card reads and writes itself, while the processor goes on.
pub struct Pinned<T> {
    gpu: Arc<Gpu>,
    at: *mut T,
    len: usize,
}

// SAFETY: memory like any other, of numbers
unsafe impl<T: Pod + Send> Send for Pinned<T> {}
// SAFETY: as above
unsafe impl<T: Pod + Sync> Sync for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// Zeros.
    ///
    /// # Errors
    /// `OutOfMemory`, naming what it is for.
    pub fn new(gpu: &Arc<Gpu>, len: usize, what: &str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>()).max(1);
        let _entered = gpu.enter()?;
        let mut at = ptr::null_mut();
        // SAFETY: the context is current; the pointer outlives the call
        match unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { what: format!("{what} (memory that {} reaches)", gpu.name()), bytes })
            }
            status => {
                gpu.check(status, &format!("reach {bytes} bytes of host memory"))?;
                // SAFETY: there are as many bytes, at a page's beginning
                unsafe { ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
                Ok(Pinned { gpu: gpu.clone(), at: at.cast(), len })
            }
        }
    }

    /// Where it begins, for copies that are on their way while nobody has a reference to it.
    pub(super) fn at(&mut self) -> *mut T {
        self.at
    }
}

impl<T> std::ops::Deref for Pinned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` numbers, which began as zeros. Copies to it are waited for before it is read: see `Queue::read`.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T> std::ops::DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed by one alone
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if let Ok(_entered) = self.gpu.enter() {
            // SAFETY: it came from cuMemHostAlloc and is freed once; the driver waits for copies that are on their way
            let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}

/// Numbers that are copied to the card again and again, from host memory that stays where it is. Whoever sets or reads them
/// has waited for the queue since they were sent or fetched last.
pub struct Staged<T> {
    host: Pinned<T>,
    card: Memory<T>,
}

impl<T: Pod> Staged<T> {
    /// Room for `len` numbers, which are zeros here and there.
    pub fn new(gpu: &Arc<Gpu>, len: usize, what: &str) -> Result<Self> {
        let staged = Staged { host: Pinned::new(gpu, len, what)?, card: Memory::new(gpu, len, what)? };
        if len > 0 {
            let (_entered, bytes) = (gpu.enter()?, len * size_of::<T>());
            // SAFETY: as many bytes as there are, on the stream that the driver has itself, which is waited for
            unsafe {
                gpu.check(sys::cuMemsetD8Async(staged.card.at, 0, bytes, ptr::null_mut()), "clear memory")?;
                gpu.check(sys::cuStreamSynchronize(ptr::null_mut()), "clear memory")?;
            }
        }
        Ok(staged)
    }

    pub fn len(&self) -> usize {
        self.card.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets the first numbers, as many as there are. They reach the card by [`Staged::send`].
    ///
    /// # Errors
    /// `Internal` for more than there is room for.
    pub fn set(&mut self, numbers: impl IntoIterator<Item = T>) -> Result<()> {
        let mut places = self.host.iter_mut();
        for number in numbers {
            let Some(place) = places.next() else {
                return Err(Error::Internal(format!("more than {} numbers for a graphics card", self.card.len())));
            };
            *place = number;
        }
        Ok(())
    }

    /// Queues a copy of the first `len` numbers to the card.
    pub fn send(&self, queue: &Queue, len: usize) -> Result<()> {
        queue.write_pinned(self.card.part(0..len), &self.host, len)
    }

    /// Queues a copy of the first `len` numbers from the card. [`Queue::wait`] before they are read.
    pub fn fetch(&mut self, queue: &Queue, len: usize) -> Result<()> {
        queue.read_pinned(self.card.part(0..len), &mut self.host)
    }

    /// The numbers in host memory.
    pub fn host(&self) -> &[T] {
        &self.host
    }

    pub fn part(&self, range: std::ops::Range<usize>) -> Part<'_, T> {
        self.card.part(range)
    }
}

/// Numbers of rows that kernels look up, each below a limit: checked, so that no kernel reads beyond what it is given.
pub struct Indices {
    limit: usize,
    rows: Staged<i32>,
}

impl Indices {
    /// Room for `len` numbers below `limit`, all of them 0.
    pub fn new(gpu: &Arc<Gpu>, len: usize, limit: usize, what: &str) -> Result<Self> {
        if i32::try_from(limit).is_err() {
            return Err(Error::invalid(format!("{limit} rows are more than a graphics card's kernels count")));
        }
        Ok(Indices { limit, rows: Staged::new(gpu, len, what)? })
    }

    /// Bytes on the card that `new` takes.
    pub fn bytes(len: usize) -> usize {
        len.saturating_mul(size_of::<i32>())
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Sets the numbers from place `first` on. They reach the card by [`Indices::send`].
    ///
    /// # Errors
    /// `Internal` for one that is not below the limit, or too many.
    pub fn set(&mut self, first: usize, numbers: impl IntoIterator<Item = usize>) -> Result<()> {
        let mut places = self.rows.host.iter_mut().skip(first);
        for number in numbers {
            match places.next() {
                Some(place) if number < self.limit => *place = number as i32,
                _ => return Err(Error::Internal(format!("row {number} of {} on a graphics card", self.limit))),
            }
        }
        Ok(())
    }

    /// Queues a copy of the first `len` numbers to the card.
    pub fn send(&self, queue: &Queue, len: usize) -> Result<()> {
        self.rows.send(queue, len)
    }

    /// Where some of them lie. All that were ever there are below the limit, of which 0 is one unless there are no rows.
    pub(super) fn part(&self, range: std::ops::Range<usize>) -> Part<'_, i32> {
        self.rows.part(range)
    }
}
