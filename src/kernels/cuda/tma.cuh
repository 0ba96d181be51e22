// The Tensor Memory Accelerator of compute capability 9.0: one thread asks for a box of a matrix, whose copy to shared memory
// an mbarrier waits for. In PTX since ISA 8.0; numbers of sections are those of ISA 9.2.
//
// Copies are of the async proxy, as wgmma's reads are: tiles that they have written need no fence before wgmma reads them, and
// none before the next copy, once an mbarrier has come in between.
#pragma once

#include "hopper.cuh"

/// What the host's cuTensorMapEncodeTiled writes (CUtensorMap): a matrix of bytes, the size of its boxes, and their swizzle.
/// A kernel's parameter, `const __grid_constant__`, which is read where it lies.
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

#ifdef MMADA_STANDIN
#include "tma.h"
#else

/// Has a tensor map read before the first copy needs it.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Arrives, and has the phase wait for `bytes` of copies more ("mbarrier.arrive" with .expect_tx): it ends when all have
/// arrived and as many bytes as all have said.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

/// Starts the copy of the box of `map` that begins at a column and a row ("cp.async.bulk.tensor"), zeros where it is past an
/// edge of the matrix. It counts its bytes, with those zeros, at the barrier. With the swizzle of 128 bytes `shared` is a
/// multiple of 1024. The barrier must be known to the async proxy: fence_async_proxy comes after mbarrier_init.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(void* shared, const TensorMap& map, int column, int row,
                                                        uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(shared)),
                 "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
                 : "memory");
}

/// Arrives when all cp.async that this thread has started until now have ended ("cp.async.mbarrier.arrive"): one of the
/// arrivals that the barrier was initialized with (.noinc). Nothing fences those copies for wgmma.
__device__ __forceinline__ void cp_async_mbarrier_arrive(uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
#endif
