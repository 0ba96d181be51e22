//! Tensor maps of the stand-in for the driver: it refuses what NVIDIA's manual does.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::driver::sys::*;

use crate::driver::{Gpu, stand_in};

/// What a tensor map is made of, that a test changes.
#[derive(Clone, Copy)]
struct Tiled {
    at: CUdeviceptr,
    dims: [u64; 2],
    stride: u64,
    box_dims: [u32; 2],
    steps: [u32; 2],
    swizzle: CUtensorMapSwizzle,
}

impl Tiled {
    fn encode(&self, map: *mut CUtensorMap) -> CUresult {
        use CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        use CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
        use CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
        use CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE;
        let (at, dims, strides) = (self.at as *mut c_void, self.dims.as_ptr(), &self.stride);
        let (box_dims, steps) = (self.box_dims.as_ptr(), self.steps.as_ptr());
        let (no_interleave, no_promotion) = (CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE);
        let (element, fill) = (CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
        // SAFETY: a map or null, and arrays that outlive the call
        unsafe {
            let swizzle = self.swizzle;
            cuTensorMapEncodeTiled(
                map,
                element,
                2,
                at,
                dims,
                strides,
                box_dims,
                steps,
                no_interleave,
                swizzle,
                no_promotion,
                fill,
            )
        }
    }
}

#[test]
fn tensor_maps_keep_to_the_manual() {
    let Some(driver) = stand_in() else { return };
    let gpu = Gpu::new(0);
    use CUresult::*;
    use CUtensorMapSwizzle::*;
    let right = Tiled {
        at: gpu.memory(1024),
        dims: [72, 10],
        stride: 144,
        box_dims: [64, 8],
        steps: [1, 1],
        swizzle: CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut map = CUtensorMap { opaque: [0; 16] };
    assert_eq!(right.encode(&mut map), CUDA_ERROR_NOT_SUPPORTED, "a driver of CUDA 11");
    driver.set("DRIVER", "12.0");
    driver.set("CAPABILITY", "9.0");
    assert_eq!(right.encode(&mut map), CUDA_SUCCESS);
    assert_eq!(right.encode(null_mut()), CUDA_ERROR_INVALID_VALUE);
    for (wrong, what) in [
        (Tiled { at: right.at + 8, ..right }, "address"),
        (Tiled { dims: [72, 0], ..right }, "dimension"),
        (Tiled { dims: [72, (1 << 32) + 1], ..right }, "dimension"),
        (Tiled { stride: 152, ..right }, "stride"),
        (Tiled { stride: 1 << 40, ..right }, "stride"),
        (Tiled { dims: [80, 10], ..right }, "rows that overlap"),
        (Tiled { box_dims: [64, 257], ..right }, "256 wide"),
        (Tiled { box_dims: [72, 8], ..right }, "longer than the swizzle"),
        (Tiled { box_dims: [4, 8], swizzle: CU_TENSOR_MAP_SWIZZLE_NONE, ..right }, "no multiple of 16"),
        (Tiled { steps: [1, 9], ..right }, "stride of elements"),
    ] {
        assert_eq!(wrong.encode(&mut map), CUDA_ERROR_INVALID_VALUE, "{what}");
        assert!(driver.message().contains(what), "{what}: {}", driver.message());
    }
}
