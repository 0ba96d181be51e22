//! Tensor maps: what the Tensor Memory Accelerator of Hopper copies boxes of matrices by (tma.cuh).

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUtensorMap};

use super::device::Gpu;
use super::memory::Part;
use crate::error::{Error, Result};

/// A matrix of bytes, in boxes of [`BOX_BYTES`] by so many rows. It holds an address: whoever has it keeps the memory.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap(CUtensorMap);

/// Of a row, in a box: the swizzle of 128 bytes, as wgmma reads it.
const BOX_BYTES: u32 = 128;

impl TensorMap {
    /// Of rows of `row_bytes`, one after the other, with zeros past the edges.
    ///
    /// # Errors
    /// `Internal` for what no tensor map is of: rows that do not begin at multiples of 16 bytes, or none; and `Device`.
    pub fn new(gpu: &Gpu, rows: Part<'_, u8>, row_bytes: usize, box_rows: usize) -> Result<TensorMap> {
        use sys::{
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let count = rows.len().checked_div(row_bytes).unwrap_or(0);
        // kernels count bytes of a row, and what they fill it up to, in int
        let fits = row_bytes < i32::MAX as usize / 2 && (1..=i32::MAX as usize).contains(&count);
        if !fits
            || !row_bytes.is_multiple_of(16)
            || !rows.address().is_multiple_of(16)
            || !rows.len().is_multiple_of(row_bytes)
        {
            let bytes = rows.len();
            return Err(Error::Internal(format!(
                "{bytes} bytes of a graphics card as a matrix with rows of {row_bytes}"
            )));
        }
        let _entered = gpu.enter()?;
        // innermost first
        let (dims, strides) = ([row_bytes as u64, count as u64], [row_bytes as u64]);
        let (box_dims, element_strides) = ([BOX_BYTES, box_rows as u32], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: `knows_hopper` has found the function, without which nothing gets here; arrays of as many numbers as a
        // matrix has dimensions, one fewer of strides, outlive the call; the address is not read here
        let status = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                CU_TENSOR_MAP_DATA_TYPE_UINT8,
                dims.len() as u32,
                rows.address() as *mut c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                box_dims.as_ptr(),
                element_strides.as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        gpu.check(status, "describe a matrix to be copied").map(|()| TensorMap(map))
    }

    /// Where the driver reads it when a kernel is launched.
    pub(super) fn as_ptr(&self) -> *const c_void {
        ptr::from_ref(&self.0).cast()
    }
}
