//! The stream that work for a card is queued on: kernels with their arguments, copies, and work that is recorded.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult, CUstream};

use super::device::Gpu;
use super::memory::{Memory, Part, Pinned};
use super::tensor_map::TensorMap;
use crate::error::{Error, Result};

/// The value of a kernel's parameter.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// In the low bytes, as many as it has.
    Number(u64),
    Map(&'a TensorMap),
}

impl Argument<'_> {
    /// Where the driver reads it.
    fn as_mut_ptr(&mut self) -> *mut c_void {
        match self {
            Argument::Number(number) => ptr::from_mut(number).cast(),
            Argument::Map(map) => map.as_ptr().cast_mut(),
        }
    }
}

impl<'a> From<&'a TensorMap> for Argument<'a> {
    fn from(map: &'a TensorMap) -> Self {
        Argument::Map(map)
    }
}

impl<T> From<Part<'_, T>> for Argument<'_> {
    fn from(part: Part<'_, T>) -> Self {
        Argument::Number(part.address())
    }
}
impl<T> From<Option<Part<'_, T>>> for Argument<'_> {
    /// None is a null pointer.
    fn from(part: Option<Part<'_, T>>) -> Self {
        Argument::Number(part.map_or(0, |part| part.address()))
    }
}
impl From<u64> for Argument<'_> {
    fn from(v: u64) -> Self {
        Argument::Number(v)
    }
}
impl From<i32> for Argument<'_> {
    fn from(v: i32) -> Self {
        Argument::Number(u64::from(v as u32))
    }
}
impl From<u32> for Argument<'_> {
    fn from(v: u32) -> Self {
        Argument::Number(u64::from(v))
    }
}
impl From<f32> for Argument<'_> {
    fn from(v: f32) -> Self {
        Argument::Number(u64::from(v.to_bits()))
    }
}
impl From<f64> for Argument<'_> {
    fn from(v: f64) -> Self {
        Argument::Number(v.to_bits())
    }
}

/// The size of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: [usize; 3],
    /// Of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory of a block.
    pub shared: usize,
}

impl Grid {
    /// Whether there is nothing to do, which the driver takes for an error.
    pub fn is_empty(&self) -> bool {
        self.blocks.contains(&0)
    }
}

/// Work for a card, done in the order in which it is queued. Where it says so a function waits; others only queue.
pub struct Queue {
    gpu: Arc<Gpu>,
    stream: CUstream,
    /// see [`Queue::blocks`]
    blocks: usize,
}

// SAFETY: a handle of the driver, which may be used from any thread
unsafe impl Send for Queue {}
// SAFETY: the driver puts what several threads queue in some order
unsafe impl Sync for Queue {}

impl Queue {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let _entered = gpu.enter()?;
        let mut queue = Queue { gpu: gpu.clone(), stream: ptr::null_mut(), blocks: gpu.multiprocessors() };
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: the context is current; the pointer outlives the call
        gpu.check(unsafe { sys::cuStreamCreate(&mut queue.stream, flags) }, "begin a stream")?;
        Ok(queue)
    }

    /// With fewer blocks than there are multiprocessors for kernels that go through tiles in turn: small work has them do what
    /// large work does.
    pub(super) fn with_blocks(gpu: &Arc<Gpu>, blocks: usize) -> Result<Self> {
        let mut queue = Queue::new(gpu)?;
        queue.blocks = blocks;
        Ok(queue)
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// How many blocks kernels have that go through tiles in turn.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Numbers in memory of their own.
    ///
    /// # Errors
    /// `OutOfMemory`, naming what it is for.
    pub fn upload<T: Pod>(&self, from: &[T], what: &str) -> Result<Memory<T>> {
        let memory = Memory::new(&self.gpu, from.len(), what)?;
        self.write(memory.all(), from)?;
        Ok(memory)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The kernel's parameters are of the kinds of `arguments`, and what it reads and writes for them and this grid is
    /// within the memory that they point to.
    pub(super) unsafe fn launch(&self, name: &str, grid: Grid, arguments: &mut [Argument]) -> Result<()> {
        if grid.is_empty() {
            return Ok(());
        }
        let _entered = self.gpu.enter()?;
        let function = self.gpu.function(name, grid.shared)?;
        let too_large = || Error::invalid(format!("{:?} blocks of {name} are more than a launch has", grid.blocks));
        let mut blocks = [0 as c_uint; 3];
        for (to, (from, limit)) in blocks.iter_mut().zip(grid.blocks.into_iter().zip([i32::MAX, 65535, 65535])) {
            *to = c_uint::try_from(from).ok().filter(|n| *n <= limit as c_uint).ok_or_else(too_large)?;
        }
        let mut pointers = [ptr::null_mut::<c_void>(); 24];
        assert!(arguments.len() <= pointers.len(), "{} arguments", arguments.len());
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = argument.as_mut_ptr();
        }
        let [x, y, z] = blocks;
        let (threads, shared) = (grid.threads as c_uint, grid.shared as c_uint);
        // SAFETY: the function is this card's; the driver reads as many arguments as it has parameters, which the caller
        // promises are those, before it returns
        let status = unsafe {
            let arguments = pointers.as_mut_ptr();
            sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, self.stream, arguments, ptr::null_mut())
        };
        self.gpu.check(status, &format!("launch the kernel {name}"))
    }

    /// Queues a copy to the card. The bytes of `from` are those of the moment when the copy runs: [`Queue::wait`] first.
    ///
    /// # Safety
    /// `from` is neither freed nor written before the queue has been waited for.
    unsafe fn copy_in<T: Pod>(&self, to: Part<'_, T>, from: &[T]) -> Result<()> {
        assert_eq!(to.len(), from.len(), "a copy of all of it");
        let bytes = size_of_val(from);
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.gpu.enter()?;
        // SAFETY: both are of that length; the caller promises the rest
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to.address(), from.as_ptr().cast(), bytes, self.stream) };
        self.gpu.check(status, &format!("take {bytes} bytes"))
    }

    /// Copies to the card, and waits for it.
    pub fn write<T: Pod>(&self, to: Part<'_, T>, from: &[T]) -> Result<()> {
        // SAFETY: it is borrowed until the copy has run
        unsafe { self.copy_in(to, from) }?;
        self.wait()
    }

    /// Queues a copy to the card from memory that stays: what counts is what it holds when the copy runs.
    pub(super) fn write_pinned<T: Pod>(&self, to: Part<'_, T>, from: &Pinned<T>, len: usize) -> Result<()> {
        // SAFETY: pinned memory is not freed before its copies have run (the driver waits), and what is written to it
        // meanwhile is numbers like others
        unsafe { self.copy_in(to, &from[..len]) }
    }

    /// Copies from the card, and waits for it and all before.
    pub fn read<T: Pod>(&self, from: Part<'_, T>, to: &mut [T]) -> Result<()> {
        self.copy_out(from, to.as_mut_ptr(), to.len())?;
        self.wait()
    }

    /// Queues a copy from the card. [`Queue::wait`] before it is read.
    pub(super) fn read_pinned<T: Pod>(&self, from: Part<'_, T>, to: &mut Pinned<T>) -> Result<()> {
        assert!(from.len() <= to.len(), "room for {} numbers", from.len());
        self.copy_out(from, to.at(), from.len())
    }

    fn copy_out<T: Pod>(&self, from: Part<'_, T>, to: *mut T, len: usize) -> Result<()> {
        assert_eq!(from.len(), len, "a copy of all of it");
        let bytes = len * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.gpu.enter()?;
        // SAFETY: both are of that length; `to` is borrowed until it has been waited for, or pinned
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.address(), bytes, self.stream) };
        self.gpu.check(status, &format!("give {bytes} bytes back"))
    }

    /// Queues a copy within the card.
    pub fn copy<T: Pod>(&self, to: Part<'_, T>, from: Part<'_, T>) -> Result<()> {
        assert_eq!(to.len(), from.len(), "a copy of all of it");
        let bytes = to.len() * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        let _entered = self.gpu.enter()?;
        // SAFETY: both are of that length
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to.address(), from.address(), bytes, self.stream) };
        self.gpu.check(status, &format!("copy {bytes} bytes"))
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// `Device` for whatever went wrong in it.
    pub fn wait(&self) -> Result<()> {
        let _entered = self.gpu.enter()?;
        // SAFETY: a stream of this card
        self.gpu.check(unsafe { sys::cuStreamSynchronize(self.stream) }, "finish its work")
    }

    /// What `queue` queues, as one piece of work that can be repeated. It runs nothing itself.
    ///
    /// `queue` must not wait, and what its kernels and copies work on must be there whenever the graph runs: whoever records
    /// forgets the graph before it frees memory.
    pub(crate) fn record(&self, queue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let recording = Recording::begin(self)?;
        let _entered = self.gpu.enter()?;
        queue()?; // or what was recorded until then is thrown away
        let graph = recording.end()?;
        let mut recorded = Graph { gpu: self.gpu.clone(), handle: ptr::null_mut() };
        // SAFETY: the graph has just been recorded; what is made of it does not need it
        let status = unsafe {
            let status = sys::cuGraphInstantiateWithFlags(&mut recorded.handle, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            status
        };
        self.gpu.check(status, "prepare recorded work").map(|()| recorded)
    }

    /// Queues recorded work.
    pub(crate) fn repeat(&self, graph: &Graph) -> Result<()> {
        let _entered = self.gpu.enter()?;
        // SAFETY: both are of this card, and whoever recorded the graph keeps what it works on
        self.gpu.check(unsafe { sys::cuGraphLaunch(graph.handle, self.stream) }, "repeat recorded work")
    }
}

/// A queue that records; it ends with this, also by a panic.
struct Recording<'a> {
    queue: &'a Queue,
    has_ended: bool,
}

impl<'a> Recording<'a> {
    fn begin(queue: &'a Queue) -> Result<Self> {
        let _entered = queue.gpu.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this card, which nobody else records
        queue.gpu.check(unsafe { sys::cuStreamBeginCapture_v2(queue.stream, mode) }, "record its work")?;
        Ok(Recording { queue, has_ended: false })
    }

    fn end(mut self) -> Result<sys::CUgraph> {
        self.has_ended = true;
        let _entered = self.queue.gpu.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the stream records; the pointer outlives the call
        let status = unsafe { sys::cuStreamEndCapture(self.queue.stream, &mut graph) };
        self.queue.gpu.check(status, "record its work").map(|()| graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let Ok(_entered) = self.queue.gpu.enter() else { return };
        let mut graph = ptr::null_mut();
        // SAFETY: as above; what was recorded is not wanted
        unsafe {
            if sys::cuStreamEndCapture(self.queue.stream, &mut graph) == CUresult::CUDA_SUCCESS {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.stream.is_null()
            && let Ok(_entered) = self.gpu.enter()
        {
            // SAFETY: destroyed once; the driver finishes what is queued
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
    }
}

/// Work that was recorded, to be queued as one: see [`Queue::record`].
pub struct Graph {
    gpu: Arc<Gpu>,
    handle: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which may be used from any thread
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.handle.is_null()
            && let Ok(_entered) = self.gpu.enter()
        {
            // SAFETY: destroyed once; the driver waits until it does not run
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}
