//! A graphics card that is there, for the kernels' tests: `MMADA_CUDA_CARD=1`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use cudarc::driver::sys::*;
use mmada::kernels::cuda::ptx_of;

/// Whether tests run on a card.
pub fn is_there() -> bool {
    std::env::var_os("MMADA_CUDA_CARD").is_some()
}

/// A context of the first card, as the driver's functions have it.
pub struct Card {
    functions: RefCell<HashMap<String, CUfunction>>,
    memory: RefCell<Vec<CUdeviceptr>>,
}

/// Unwraps a status of the driver's. The calls are right as far as memory goes: that is what `Card` has its pointers from.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: pointers to variables that outlive the call, and memory of the card's
        assert_eq!(unsafe { $call }, CUresult::CUDA_SUCCESS)
    };
}

impl Card {
    pub fn new() -> Card {
        let (mut device, mut context) = (0, null_mut());
        ok!(cuInit(0));
        ok!(cuDeviceGet(&mut device, 0));
        ok!(cuDevicePrimaryCtxRetain(&mut context, device));
        ok!(cuCtxSetCurrent(context));
        Card { functions: RefCell::default(), memory: RefCell::default() }
    }

    pub fn compute_capability(&self) -> (i32, i32) {
        use CUdevice_attribute::*;
        let (mut major, mut minor) = (0, 0);
        ok!(cuDeviceGetAttribute(&mut major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 0));
        ok!(cuDeviceGetAttribute(&mut minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, 0));
        (major, minor)
    }

    /// Memory filled with bytes of ones.
    pub fn allocate(&self, bytes: usize) -> u64 {
        let mut at = 0;
        ok!(cuMemAlloc_v2(&mut at, bytes.max(1)));
        ok!(cuMemsetD8Async(at, 0xff, bytes.max(1), null_mut()));
        self.memory.borrow_mut().push(at);
        at
    }

    pub fn write(&self, to: u64, bytes: &[u8]) {
        ok!(cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), null_mut()));
        ok!(cuStreamSynchronize(null_mut()));
    }

    pub fn read(&self, from: u64, bytes: usize) -> Vec<u8> {
        let mut to = vec![0; bytes];
        ok!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, bytes, null_mut()));
        ok!(cuStreamSynchronize(null_mut()));
        to
    }

    /// The bytes of a tensor map: see `Device::tensor_map`.
    pub fn tensor_map(&self, at: u64, rows: usize, row_bytes: usize, box_rows: usize) -> Vec<u8> {
        use CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
        use CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        use CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        use CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        use CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
        let (dims, strides) = ([row_bytes as u64, rows as u64], [row_bytes as u64]);
        let (box_dims, steps) = ([128, box_rows as u32], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        ok!(cuTensorMapEncodeTiled(
            &mut map,
            CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2,
            at as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            box_dims.as_ptr(),
            steps.as_ptr(),
            CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ));
        map.opaque.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Runs a kernel. `arguments` have the sizes of its parameters.
    pub fn launch(&self, name: &str, grid: [usize; 3], threads: usize, shared: usize, arguments: &[&[u8]]) {
        let mut functions = self.functions.borrow_mut();
        let function = *functions.entry(name.to_owned()).or_insert_with(|| load(name));
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        ok!(cuFuncSetAttribute(function, attribute, shared as i32));
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|a| a.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = grid.map(|n| n as u32);
        let (threads, shared, arguments) = (threads as u32, shared as u32, arguments.as_mut_ptr());
        ok!(cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, null_mut(), arguments, null_mut()));
        ok!(cuStreamSynchronize(null_mut()));
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        for at in self.memory.take() {
            // SAFETY: it came from cuMemAlloc and is freed once; after a failed test there is nobody to tell of an error
            let _ = unsafe { cuMemFree_v2(at) };
        }
    }
}

fn load(name: &str) -> CUfunction {
    let ptx = ptx_of(name).unwrap_or_else(|| panic!("there is no kernel {name}"));
    let (ptx, name) = (CString::new(ptx).unwrap(), CString::new(name).unwrap());
    let (mut module, mut function) = (null_mut(), null_mut());
    ok!(cuModuleLoadData(&mut module, ptx.as_ptr().cast()));
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}
