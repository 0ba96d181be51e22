//! A graphics card in use: its context, kernels, memory, and the stream that work is queued on.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUresult, CUstream};

use super::driver::{Card, check, find};
use super::modules;
use super::tensor_map::TensorMap;
use crate::error::{Error, Result};
use crate::memory::try_push;

/// What `self_check` found out about some kernels of a card.
#[derive(Default)]
pub(super) struct Checks {
    pub is_done: AtomicBool,
    /// Whether it has Hopper's tensor cores, a driver that knows them, and kernels for them that were found to be right.
    pub has_hopper: AtomicBool,
}

/// A card that kernels run on. One for each card and process, for as long as anybody holds it.
///
/// Threads: all functions may be called from any. Work is queued on [`Queue`]s, which order it.
pub struct Gpu {
    card: Card,
    device: CUdevice,
    context: CUcontext,
    multiprocessors: usize,
    /// See `self_check`: of products, and of attention with heads of 64 and of 128.
    pub(super) product_checks: Checks,
    attention_checks: [Checks; 2],
    /// Whether the image tokenizer's kernels were found to be right: see `image_check`.
    pub(super) images_are_checked: AtomicBool,
    /// Translated when they are first launched.
    functions: Mutex<Functions>,
}

#[derive(Default)]
struct Functions {
    modules: Vec<CUmodule>,
    by_name: HashMap<String, Function>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: CUfunction,
    /// Dynamic shared memory that it may have so far; without being asked the driver allows [`PLAIN_SHARED`].
    shared: usize,
}

/// Shared memory of a block that needs no permission.
const PLAIN_SHARED: usize = 48 << 10;

// SAFETY: handles of the driver, which may be used from any thread; what changes here is behind the mutex
unsafe impl Send for Gpu {}
// SAFETY: as above
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The card `index`.
    ///
    /// # Errors
    /// `InvalidArgument`, in one sentence: no driver, one that is too old, no such card, or a card that is too old.
    /// `Device` if it does not start, or while somebody holds one that an error has ended.
    pub fn open(index: usize) -> Result<Arc<Gpu>> {
        static OPEN: Mutex<Vec<Weak<Gpu>>> = Mutex::new(Vec::new());
        let card = find(index)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|gpu| gpu.strong_count() > 0);
        if let Some(gpu) = open.iter().filter_map(Weak::upgrade).find(|gpu| gpu.card == card) {
            // the driver gives the same context to all of a process, also one that an error has ended
            return if gpu.is_lost() { Err(gpu.has_ended()) } else { Ok(gpu) };
        }
        let gpu = Arc::new(Gpu::start(card)?);
        try_push(&mut open, Arc::downgrade(&gpu), "a list of devices")?;
        Ok(gpu)
    }

    fn start(card: Card) -> Result<Gpu> {
        let mut gpu = Gpu {
            card,
            device: 0,
            context: ptr::null_mut(),
            multiprocessors: 1,
            product_checks: Checks::default(),
            attention_checks: Default::default(),
            images_are_checked: AtomicBool::new(false),
            functions: Mutex::default(),
        };
        // SAFETY: `find` has listed the card, so the driver is there; the pointer outlives the call
        let status = unsafe { sys::cuDeviceGet(&mut gpu.device, gpu.card.index as c_int) };
        gpu.check(status, "be found")?;
        // SAFETY: as above
        let status = unsafe { sys::cuDevicePrimaryCtxRetain(&mut gpu.context, gpu.device) };
        gpu.check(status, "be started")?;
        let (attribute, mut count) = (sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 1);
        // SAFETY: as above
        gpu.check(unsafe { sys::cuDeviceGetAttribute(&mut count, attribute, gpu.device) }, "say what it has")?;
        gpu.multiprocessors = count.max(1) as usize;
        Ok(gpu)
    }

    pub fn card(&self) -> &Card {
        &self.card
    }

    /// `cuda:0 (NVIDIA H100)`, for messages.
    pub fn name(&self) -> String {
        format!("cuda:{} ({})", self.card.index, self.card.name)
    }

    /// Whether weights are worth unpacking for Hopper's kernels ([`Unpacked`](super::Unpacked)); known once `self_check` has
    /// run.
    pub fn has_hopper(&self) -> bool {
        self.product_checks.has_hopper.load(Ordering::Relaxed)
    }

    /// Whether long sequences attend by Hopper's kernels with heads of `dim`; known once `self_check` has run.
    pub fn has_hopper_attention(&self, dim: usize) -> bool {
        self.attention_checks(dim).is_some_and(|checks| checks.has_hopper.load(Ordering::Relaxed))
    }

    /// `None` for heads that attention has no kernels for.
    pub(super) fn attention_checks(&self, dim: usize) -> Option<&Checks> {
        let [of_64, of_128] = &self.attention_checks;
        match dim {
            64 => Some(of_64),
            128 => Some(of_128),
            _ => None,
        }
    }

    /// How many blocks of threads it runs at a time, at least.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Bytes of its memory that are free now, for all processes.
    pub fn free_memory(&self) -> Result<usize> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; both pointers outlive the call
        self.check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "say what memory it has")?;
        Ok(free)
    }

    /// Whether an error has ended its context for this process.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.free_memory(), Err(Error::Device { .. }))
    }

    fn has_ended(&self) -> Error {
        let reason =
            "an error has ended its use by this process; free all that still uses it, then try again".to_owned();
        Error::Device { device: self.name(), reason }
    }

    /// Makes its context the thread's.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context was retained and is released by `drop` alone
        self.check(unsafe { sys::cuCtxSetCurrent(self.context) }, "be used")
    }

    /// `Device` with what the driver says, unless it says that all is well: the card cannot `verb`. `OutOfMemory` where it says
    /// that: translating kernels, launching them and preparing graphs take memory that nobody asked for by size.
    pub(super) fn check(&self, status: CUresult, verb: &str) -> Result<()> {
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (mut free, mut total) = (0, 0);
            // SAFETY: a context that was retained, or null for none; both pointers outlive the calls
            let told = unsafe { (sys::cuCtxSetCurrent(self.context), sys::cuMemGetInfo_v2(&mut free, &mut total)) };
            let is_known = told == (CUresult::CUDA_SUCCESS, CUresult::CUDA_SUCCESS);
            let free = if is_known { format!(", which has {free} bytes free,") } else { String::new() };
            return Err(Error::OutOfMemory { what: format!("{}{free} could not {verb}", self.name()), bytes: 0 });
        }
        check(status).map_err(|reason| Error::Device {
            device: self.name(),
            reason: format!("it could not {verb}: the driver says {reason}"),
        })
    }

    /// The kernel `name`, which may have `shared` bytes of dynamic shared memory.
    fn function(&self, name: &str, shared: usize) -> Result<CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match functions.by_name.get(name) {
            Some(function) => *function,
            None => self.load(&mut functions, name)?,
        };
        if shared > function.shared {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a module that lives as long as this
            let status = unsafe { sys::cuFuncSetAttribute(function.handle, attribute, shared as c_int) };
            self.check(status, &format!("give the kernel {name} {shared} bytes of shared memory"))?;
            functions.by_name.insert(name.to_owned(), Function { shared, ..function });
        }
        Ok(function.handle)
    }

    /// Lets the driver translate a kernel for this card. Each is a module of its own: of hundreds a model needs a few.
    fn load(&self, functions: &mut Functions, name: &str) -> Result<Function> {
        let ptx = modules::ptx_of(name).ok_or_else(|| Error::Internal(format!("there is no CUDA kernel {name}")))?;
        let ptx = CString::new(ptx).map_err(|_| Error::Internal(format!("the PTX of {name} holds NUL")))?;
        let c_name = CString::new(name).map_err(|_| Error::Internal(format!("the kernel name {name:?}")))?;
        let mut module = ptr::null_mut();
        let mut function = Function { handle: ptr::null_mut(), shared: PLAIN_SHARED };
        let verb = format!("translate the kernel {name}");
        functions.modules.try_reserve(1).map_err(|_| out_of_host_memory("a list of kernels"))?;
        functions.by_name.try_reserve(1).map_err(|_| out_of_host_memory("a list of kernels"))?;
        // SAFETY: the context is current, `ptx` ends with NUL, there are no options; the module is kept until `drop`
        unsafe {
            let no_options = (0, ptr::null_mut(), ptr::null_mut());
            let (count, options, values) = no_options;
            let status = sys::cuModuleLoadDataEx(&mut module, ptx.as_ptr().cast(), count, options, values);
            self.check(status, &verb)?;
            functions.modules.push(module);
            self.check(sys::cuModuleGetFunction(&mut function.handle, module, c_name.as_ptr()), &verb)?;
        }
        functions.by_name.insert(name.to_owned(), function);
        Ok(function)
    }
}

fn out_of_host_memory(what: &str) -> Error {
    Error::OutOfMemory { what: what.to_owned(), bytes: size_of::<(usize, Function)>() }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        let is_current = self.enter().is_ok();
        let functions = self.functions.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever launches kernels or has memory holds the `Gpu`, so nothing of it is in use any more. A context that
        // an error has ended refuses some of this; there is nobody to tell.
        unsafe {
            for module in functions.modules.drain(..).filter(|_| is_current) {
                let _ = sys::cuModuleUnload(module);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

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
        gpu.enter()?;
        // SAFETY: the context is current; the pointer outlives the call
        match unsafe { sys::cuMemAlloc_v2(&mut memory.at, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, name) = (gpu.free_memory()?, gpu.name());
                Err(Error::OutOfMemory { what: format!("{what} on {name}, which has {free} bytes free,"), bytes })
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
        if self.at != 0 && self.gpu.enter().is_ok() {
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

    /// Where they begin.
    pub(super) fn address(&self) -> u64 {
        self.at
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
        gpu.enter()?;
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
        if self.gpu.enter().is_ok() {
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
            let bytes = len * size_of::<T>();
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
        Argument::Number(part.at)
    }
}
impl<T> From<Option<Part<'_, T>>> for Argument<'_> {
    /// None is a null pointer.
    fn from(part: Option<Part<'_, T>>) -> Self {
        Argument::Number(part.map_or(0, |part| part.at))
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
}

// SAFETY: a handle of the driver, which may be used from any thread
unsafe impl Send for Queue {}
// SAFETY: the driver puts what several threads queue in some order
unsafe impl Sync for Queue {}

impl Queue {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        gpu.enter()?;
        let mut queue = Queue { gpu: gpu.clone(), stream: ptr::null_mut() };
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: the context is current; the pointer outlives the call
        gpu.check(unsafe { sys::cuStreamCreate(&mut queue.stream, flags) }, "begin a stream")?;
        Ok(queue)
    }

    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
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
        self.gpu.enter()?; // whoever is called in between may have used another card
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
        assert_eq!(to.len, from.len(), "a copy of all of it");
        let bytes = size_of_val(from);
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: both are of that length; the caller promises the rest
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to.at, from.as_ptr().cast(), bytes, self.stream) };
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
        assert!(from.len <= to.len, "room for {} numbers", from.len);
        self.copy_out(from, to.at, from.len)
    }

    fn copy_out<T: Pod>(&self, from: Part<'_, T>, to: *mut T, len: usize) -> Result<()> {
        assert_eq!(from.len, len, "a copy of all of it");
        let bytes = len * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: both are of that length; `to` is borrowed until it has been waited for, or pinned
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.at, bytes, self.stream) };
        self.gpu.check(status, &format!("give {bytes} bytes back"))
    }

    /// Queues a copy within the card.
    pub fn copy<T: Pod>(&self, to: Part<'_, T>, from: Part<'_, T>) -> Result<()> {
        assert_eq!(to.len, from.len, "a copy of all of it");
        let bytes = to.len * size_of::<T>();
        if bytes == 0 {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: both are of that length
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to.at, from.at, bytes, self.stream) };
        self.gpu.check(status, &format!("copy {bytes} bytes"))
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// `Device` for whatever went wrong in it.
    pub fn wait(&self) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: a stream of this card
        self.gpu.check(unsafe { sys::cuStreamSynchronize(self.stream) }, "finish its work")
    }

    /// What `queue` queues, as one piece of work that can be repeated. It runs nothing itself.
    ///
    /// `queue` must not wait, and what its kernels and copies work on must be there whenever the graph runs: whoever records
    /// forgets the graph before it frees memory.
    pub(crate) fn record(&self, queue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let recording = Recording::begin(self)?;
        queue()?; // what was recorded until then is forgotten
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
        self.gpu.enter()?;
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
        queue.gpu.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this card, which nobody else records
        queue.gpu.check(unsafe { sys::cuStreamBeginCapture_v2(queue.stream, mode) }, "record its work")?;
        Ok(Recording { queue, has_ended: false })
    }

    fn end(mut self) -> Result<sys::CUgraph> {
        self.has_ended = true;
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
        if !self.stream.is_null() && self.gpu.enter().is_ok() {
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
        if !self.handle.is_null() && self.gpu.enter().is_ok() {
            // SAFETY: destroyed once; the driver waits until it does not run
            let _ = unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}
