//! NVIDIA's driver, if there is one. Nothing of CUDA is linked: the driver's library is looked for when it is first asked
//! for, and so is every function of it that is used here, because cudarc panics where one is missing.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice, CUresult};

use crate::error::{Error, Result};
use crate::memory::try_push;

/// The oldest driver that translates the PTX of `ptx/` (ISA 7.8): that of CUDA 11.8.
const OLDEST_DRIVER: c_int = 11080;
/// The oldest that translates that of Hopper's kernels (ISA 8.0): that of CUDA 12.0.
const OLDEST_FOR_HOPPER: c_int = 12000;
/// The first processors with tensor cores for bfloat16 and with cp.async.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// All that is called, here, in `device`, `memory` and `queue`.
const FUNCTIONS: [&CStr; 36] = [
    c"cuInit",
    c"cuDriverGetVersion",
    c"cuGetErrorName",
    c"cuGetErrorString",
    c"cuDeviceGetCount",
    c"cuDeviceGet",
    c"cuDeviceGetName",
    c"cuDeviceTotalMem_v2",
    c"cuDeviceGetAttribute",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxGetCurrent",
    c"cuCtxSetCurrent",
    c"cuMemGetInfo_v2",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemHostAlloc",
    c"cuMemFreeHost",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyDtoDAsync_v2",
    c"cuMemsetD8Async",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
    c"cuStreamBeginCapture_v2",
    c"cuStreamEndCapture",
    c"cuGraphInstantiateWithFlags",
    c"cuGraphLaunch",
    c"cuGraphExecDestroy",
    c"cuGraphDestroy",
    c"cuModuleLoadDataEx",
    c"cuModuleUnload",
    c"cuModuleGetFunction",
    c"cuFuncSetAttribute",
    c"cuLaunchKernel",
];

/// What Hopper's kernels need besides, which a driver has since CUDA 12.0.
const TENSOR_MAPS: &CStr = c"cuTensorMapEncodeTiled";

/// A graphics card, before anything is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What `cuda:N` means by N.
    pub index: usize,
    /// What its maker calls it.
    pub name: String,
    /// Bytes of its memory, free or not.
    pub memory_bytes: u64,
    /// Major and minor.
    pub compute_capability: (i32, i32),
}

impl Card {
    /// Why the kernels do not run on it, if they do not.
    pub fn refusal(&self) -> Option<String> {
        let ((major, minor), (least, _)) = (self.compute_capability, OLDEST_CAPABILITY);
        (self.compute_capability < OLDEST_CAPABILITY).then(|| {
            format!("cuda:{} ({}) has compute capability {major}.{minor}, {least}.0 is needed", self.index, self.name)
        })
    }
}

/// The cards of this machine that answer, or one sentence that says why there are none.
pub fn cards() -> Result<Vec<Card>, String> {
    let (mut found, mut reason) = (Vec::new(), None);
    for index in 0..count()? {
        match card(index) {
            Ok(card) => found.push(card),
            Err(why) => reason = Some(why),
        }
    }
    match reason {
        Some(reason) if found.is_empty() => Err(reason),
        _ => Ok(found),
    }
}

/// How many cards the driver has; at least one.
fn count() -> Result<c_int, String> {
    available()?;
    let mut count = 0;
    // SAFETY: `available` has found the function and started the driver; the number outlives the call
    let status = unsafe { sys::cuDeviceGetCount(&mut count) };
    check(status).map_err(|reason| format!("the CUDA driver cannot list its devices: {reason}"))?;
    if count > 0 { Ok(count) } else { Err(NO_DEVICE.to_owned()) }
}

const NO_DEVICE: &str = "the CUDA driver finds no device";

/// The card `index` of those that [`cards`] lists, for a person who asked for it by number.
///
/// # Errors
/// `InvalidArgument` with the sentence of [`cards`], for an index that no card has, or a card that is too old.
pub(super) fn find(index: usize) -> Result<Card> {
    let unusable = |reason| Error::invalid(format!("cuda:{index} cannot be used: {reason}"));
    let count = count().map_err(unusable)?;
    let Some(number) = c_int::try_from(index).ok().filter(|number| *number < count) else {
        let have = if count == 1 { "there is cuda:0 alone".to_owned() } else { format!("there are {count} devices") };
        return Err(Error::invalid(format!("cuda:{index} is not there: {have}")));
    };
    let card = card(number).map_err(unusable)?;
    match card.refusal() {
        Some(reason) => Err(Error::invalid(reason)),
        None => Ok(card),
    }
}

/// Whether the driver is there, is new enough, and starts.
fn available() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(find_functions).clone()?;
    let mut version = 0;
    // SAFETY: the functions are there; the first may be called before the second, and that more than once
    let (told, started) = unsafe { (sys::cuDriverGetVersion(&mut version), sys::cuInit(0)) };
    if told == CUresult::CUDA_SUCCESS && version < OLDEST_DRIVER {
        return Err(too_old(version));
    }
    match started {
        CUresult::CUDA_ERROR_NO_DEVICE => Err(NO_DEVICE.to_owned()),
        status => check(status).map_err(|reason| format!("the CUDA driver does not start: {reason}")),
    }
}

/// Whether Hopper's kernels can be translated for a card, and given what they need.
pub(super) fn knows_hopper(card: &Card) -> bool {
    let mut version = 0;
    // SAFETY: the driver has listed the card, so the function is there; the pointer outlives the call
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    // `sm_90a` is for this processor alone
    let is_new = status == CUresult::CUDA_SUCCESS && version >= OLDEST_FOR_HOPPER;
    card.compute_capability == (9, 0) && is_new && has_function(TENSOR_MAPS) && hopper_is_allowed(card.index)
}

/// Whether kernels for Hopper may be used on a card, by passes that begin from now on (steps that were recorded are what they
/// are). They may until this says otherwise.
pub fn allow_hopper(index: usize, allow: bool) {
    let mut without = without_hopper();
    without.retain(|&other| other != index);
    if !allow {
        // where there is no memory for the list they are found wrong again
        let _ = try_push(&mut without, index, "a list of devices");
    }
}

/// What [`allow_hopper`] has said last.
pub(super) fn hopper_is_allowed(index: usize) -> bool {
    !without_hopper().contains(&index)
}

/// Cards on which kernels for Hopper are left alone by this process.
fn without_hopper() -> MutexGuard<'static, Vec<usize>> {
    static WITHOUT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    WITHOUT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_old(version: c_int) -> String {
    let (major, minor) = (version / 1000, version % 1000 / 10);
    format!("the CUDA driver is of version {major}.{minor}, 11.8 (driver 520) or later is needed")
}

/// Looks for the driver's library and all functions; once, as neither comes or goes while a process runs.
fn find_functions() -> Result<(), String> {
    // SAFETY: opening the driver's library runs its constructors, which any program that uses CUDA does
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "there is no CUDA driver on this machine (its library, libcuda or nvcuda, was not found)".to_owned()
        );
    }
    let Some(name) = FUNCTIONS.into_iter().find(|name| !has_function(name)) else { return Ok(()) };
    let mut version = 0;
    // SAFETY: the function is asked for only where it is there
    let told = has_function(c"cuDriverGetVersion")
        && unsafe { sys::cuDriverGetVersion(&mut version) } == CUresult::CUDA_SUCCESS;
    if told && version < OLDEST_DRIVER {
        return Err(too_old(version));
    }
    Err(format!("the CUDA driver has no function {}: it is too old", name.to_string_lossy()))
}

/// Whether the driver's library, which was found, has a function.
fn has_function(name: &CStr) -> bool {
    // SAFETY: the library is there, so this does not panic; the symbol is not used as what it is taken for, only its presence
    // is looked at
    unsafe { sys::culib().get::<*const c_void>(name.to_bytes_with_nul()) }.is_ok()
}

/// A card, or one sentence that says why it does not answer.
fn card(index: c_int) -> Result<Card, String> {
    ask(index).map_err(|reason| format!("cuda:{index} does not answer: {reason}"))
}

fn ask(index: c_int) -> Result<Card, String> {
    let mut device: CUdevice = 0;
    let mut name = [0 as c_char; 256];
    let (mut memory, mut major, mut minor) = (0usize, 0, 0);
    use sys::CUdevice_attribute::*;
    // SAFETY: the driver has started; all pointers are to variables that outlive the calls, and `name` has the length
    // that is given with it
    unsafe {
        check(sys::cuDeviceGet(&mut device, index))?;
        check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
        check(sys::cuDeviceTotalMem_v2(&mut memory, device))?;
        check(sys::cuDeviceGetAttribute(&mut major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))?;
        check(sys::cuDeviceGetAttribute(&mut minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))?;
    }
    let bytes: Vec<u8> = name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(Card {
        index: index as usize,
        name: String::from_utf8_lossy(&bytes).into_owned(),
        memory_bytes: memory as u64,
        compute_capability: (major, minor),
    })
}

/// What the driver says about a status that is not success: `CUDA_ERROR_INVALID_VALUE (invalid argument)`.
pub(super) fn check(status: CUresult) -> Result<(), String> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the pointer outlives the call, and what it comes to point to is never freed
        let status = unsafe { get(status, &mut text) };
        if status != CUresult::CUDA_SUCCESS || text.is_null() {
            return None;
        }
        // SAFETY: a text of the driver's, which ends with NUL
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", status as u32));
    Err(match text(sys::cuGetErrorString) {
        Some(sentence) => format!("{name} ({sentence})"),
        None => name,
    })
}
