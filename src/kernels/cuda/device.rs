//! A graphics card in use: its context, and its kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUfunction, CUmodule, CUresult};

use super::driver::{Card, check, find, hopper_is_allowed};
use super::modules;
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
/// Threads: all functions may be called from any. Work is queued on [`Queue`](super::Queue)s, which order it.
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

    /// The same and the memory that is free there, as far as the driver tells: `cuda:0 (NVIDIA H100), which has 5 bytes free,`.
    /// Its context is the thread's.
    pub(super) fn name_with_free(&self) -> String {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers outlive the call, which fails where no context is current
        match unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) } {
            CUresult::CUDA_SUCCESS => format!("{}, which has {free} bytes free,", self.name()),
            _ => self.name(),
        }
    }

    /// Whether weights are worth unpacking for Hopper's kernels ([`Unpacked`](super::Unpacked)); known once `self_check` has
    /// run.
    pub fn has_hopper(&self) -> bool {
        self.is_right(&self.product_checks)
    }

    /// Whether long sequences attend by Hopper's kernels with heads of `dim`; known once `self_check` has run.
    pub fn has_hopper_attention(&self, dim: usize) -> bool {
        self.attention_checks(dim).is_some_and(|checks| self.is_right(checks))
    }

    /// Whether anything on it runs by Hopper's kernels.
    pub fn uses_hopper(&self) -> bool {
        self.attention_checks.iter().chain([&self.product_checks]).any(|checks| self.is_right(checks))
    }

    /// Whether Hopper's kernels of a kind were found to be right, and nobody has said to leave them alone.
    fn is_right(&self, checks: &Checks) -> bool {
        checks.has_hopper.load(Ordering::Relaxed) && hopper_is_allowed(self.card.index)
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
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; both pointers outlive the call
        self.check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "say what memory it has")?;
        Ok(free)
    }

    /// Whether an error has ended its context for this process.
    pub fn is_lost(&self) -> bool {
        matches!(self.free_memory(), Err(Error::Device { .. }))
    }

    fn has_ended(&self) -> Error {
        let reason =
            "an error has ended its use by this process; free all that still uses it, then try again".to_owned();
        Error::Device { device: self.name(), reason }
    }

    /// Makes its context the thread's for as long as the answer is held: whoever calls the library may work on another card.
    pub(super) fn enter(&self) -> Result<Entered> {
        let mut before = ptr::null_mut();
        // SAFETY: the pointer outlives the call
        self.check(unsafe { sys::cuCtxGetCurrent(&mut before) }, "be used")?;
        // SAFETY: the context was retained and is released by `drop` alone
        self.check(unsafe { sys::cuCtxSetCurrent(self.context) }, "be used")?;
        Ok(Entered { before })
    }

    /// `Device` with what the driver says, unless it says that all is well: the card cannot `verb`. `OutOfMemory` where it says
    /// that: translating kernels, launching them and preparing graphs take memory that nobody asked for by size.
    pub(super) fn check(&self, status: CUresult, verb: &str) -> Result<()> {
        if status == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(Error::OutOfMemory { what: format!("{} could not {verb}", self.name_with_free()), bytes: 0 });
        }
        check(status).map_err(|reason| Error::Device {
            device: self.name(),
            reason: format!("it could not {verb}: the driver says {reason}"),
        })
    }

    /// The kernel `name`, which may have `shared` bytes of dynamic shared memory.
    pub(super) fn function(&self, name: &str, shared: usize) -> Result<CUfunction> {
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

/// A card's context is the thread's; the one before is again when this is dropped.
#[must_use]
pub(super) struct Entered {
    before: CUcontext,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: it was the thread's a moment ago, or null. Nothing can be done about an error, which a context gives that has
        // ended meanwhile.
        let _ = unsafe { sys::cuCtxSetCurrent(self.before) };
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
        let entered = self.enter();
        let functions = self.functions.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever launches kernels or has memory holds the `Gpu`, so nothing of it is in use any more. A context that
        // an error has ended refuses some of this; there is nobody to tell.
        unsafe {
            for module in functions.modules.drain(..).filter(|_| entered.is_ok()) {
                let _ = sys::cuModuleUnload(module);
            }
            drop(entered);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}
