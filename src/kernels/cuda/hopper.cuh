// What compute capability 9.0 adds: matrix products by warpgroups (wgmma), barriers in shared memory (mbarrier), and
// registers that move between warpgroups. In PTX since ISA 8.0; numbers of sections are those of ISA 9.2.
//
// Tiles are rows of 128 bytes along k, with the 128-byte swizzle: piece `p` of 16 bytes of row `r` lies at piece
// `p ^ (r % 8)`, and a tile begins at a multiple of 1024 bytes. A slice, what one wgmma multiplies, is 32 bytes of every row:
// 16 elements in bfloat16, 32 in int8.
#pragma once

#include "device.cuh"

#define ROW_BYTES 128
#define ROW_SLICES (ROW_BYTES / 32)
#define WARPGROUP 128
// threads of a kernel here: a warpgroup that copies and two that multiply
#define BLOCK_THREADS (3 * WARPGROUP)

#ifdef MMADA_STANDIN
#include "warpgroups.h"
#else

// Registers of each thread of the warpgroup, a multiple of 8: all its warps do this (section "setmaxnreg").
template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// A barrier whose phases end when `count` threads have arrived (sections of "mbarrier"). Phases are numbered from 0;
// `mbarrier_wait` returns once the last phase of that parity is over, and right away for parity 1 on a new barrier. Arriving
// releases what the thread wrote, waiting acquires it.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
                 : "memory");
}
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t over;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                 : "=r"(over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return over;
}
__device__ __forceinline__ uint32_t clock_high() {
    uint32_t cycles;
    asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(cycles));
    return cycles;
}
// A phase that never ends would hold the card for ever, so a wait of seconds ends the launch with an error: the second time
// that a try finds another 2^32 cycles begun. Once does not count, as the kernel may have been suspended meanwhile.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    if (mbarrier_try_wait(barrier, parity)) return;
    uint32_t before = clock_high(), changes = 0;
    while (!mbarrier_try_wait(barrier, parity)) {
        const uint32_t now = clock_high();
        if (now == before) continue;
        if (++changes == 2) asm volatile("trap;");
        before = now;
    }
}

// Starts a copy of 4 bytes to shared memory, zeros where they are not `there`, as cp_async_16.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(there ? 4 : 0)
                 : "memory");
}

// What this thread wrote to shared memory (cp.async that it has waited for too) comes before what wgmma reads there after a
// barrier (9.7.15.4, "Async Proxy"), and the initialization of an mbarrier before bulk copies arrive there. The end of a wgmma
// needs no such fence before the next copy: it is one.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before a warpgroup's first wgmma, and before one whose accumulators were read or written since (9.7.15.7.1).
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until no more than `GROUPS` of the last groups are on their way. Accumulators that are read after it are given to it,
/// so that the compiler moves nothing that reads them across; the others stay untouched, or ptxas would wait for them.
template <int GROUPS>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}
/// Ends the launch with an error. Neither the compiler nor ptxas moves it past other volatile assembly, so that what
/// `condition` hangs on is computed before what comes next.
__device__ __forceinline__ void trap_if(bool condition) {
    if (condition) asm volatile("trap;" ::: "memory");
}
__device__ __forceinline__ void pin(float& v) { asm volatile("" : "+f"(v)::"memory"); }
__device__ __forceinline__ void pin(int& v) { asm volatile("" : "+r"(v)::"memory"); }
__device__ __forceinline__ void pin(uint32_t& v) { asm volatile("" : "+r"(v)::"memory"); }
template <int GROUPS, class T, int N>
__device__ __forceinline__ void wgmma_wait(T (&d)[N]) {
    wgmma_wait<GROUPS>();
    #pragma unroll
    for (int i = 0; i < N; i++) pin(d[i]);
}
/// The same, after which the registers of first operands may change too.
template <int GROUPS, int N, int STEPS>
__device__ __forceinline__ void wgmma_wait(float (&d)[N], uint32_t (&a)[STEPS][4]) {
    wgmma_wait<GROUPS>(d);
    #pragma unroll
    for (int i = 0; i < 4 * STEPS; i++) pin(a[i / 4][i % 4]);
}

#define REGISTERS_32                                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "          \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64                                                                                                     \
    REGISTERS_32 ", "                                                                                                    \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "          \
    "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128                                                                                                    \
    REGISTERS_64 ", "                                                                                                    \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, "          \
    "%85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, "          \
    "%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "       \
    "%123, %124, %125, %126, %127"
#define EIGHT(C, d, i) C(d[i]), C(d[i + 1]), C(d[i + 2]), C(d[i + 3]), C(d[i + 4]), C(d[i + 5]), C(d[i + 6]), C(d[i + 7])
#define ACCUMULATORS_32(C, d) EIGHT(C, d, 0), EIGHT(C, d, 8), EIGHT(C, d, 16), EIGHT(C, d, 24)
#define ACCUMULATORS_64(C, d)                                                                                            \
    ACCUMULATORS_32(C, d), EIGHT(C, d, 32), EIGHT(C, d, 40), EIGHT(C, d, 48), EIGHT(C, d, 56)
#define ACCUMULATORS_128(C, d)                                                                                           \
    ACCUMULATORS_64(C, d), EIGHT(C, d, 64), EIGHT(C, d, 72), EIGHT(C, d, 80), EIGHT(C, d, 88), EIGHT(C, d, 96),             \
        EIGHT(C, d, 104), EIGHT(C, d, 112), EIGHT(C, d, 120)

// d, of 64 rows and as many columns as twice its length, += a b of one slice (9.7.15.5). Both operands are descriptors; b
// is rows of k as a is: columns of what is multiplied.
__device__ __forceinline__ void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" REGISTERS_128 "}, %128, %129, 1, 1, 1, 0, 0;"
                 : ACCUMULATORS_128("+f", d)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS_64 "}, %64, %65, 1, 1, 1, 0, 0;"
                 : ACCUMULATORS_64("+f", d)
                 : "l"(a), "l"(b));
}
/// The same, d = a b rather than +=.
__device__ __forceinline__ void wgmma_bf16_new(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS_64 "}, %64, %65, 0, 1, 1, 0, 0;"
                 : ACCUMULATORS_64("=f", d)
                 : "l"(a), "l"(b));
}
/// d += a b where a slice of a is in registers, as mma_bf16 has it for the 16 rows of a warp (9.7.15.5.1.1.1), and b lies in
/// rows of columns: `transposed_operand`. The registers of a are read until the product has been waited for.
__device__ __forceinline__ void wgmma_bf16_transposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" REGISTERS_64
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : ACCUMULATORS_64("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_bf16_transposed(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" REGISTERS_32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : ACCUMULATORS_32("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/// The same in int8; d = a b rather than += where not `add`.
__device__ __forceinline__ void wgmma_s8(int (&d)[64], uint64_t a, uint64_t b, bool add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0; "
                 "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" REGISTERS_64 "}, %64, %65, p; }"
                 : ACCUMULATORS_64("+r", d)
                 : "l"(a), "l"(b), "r"((int)add));
}

/// 2^v in one instruction, with an error of 2^-22 or so of it, and 0 where it would be subnormal.
__device__ __forceinline__ float exp2_approximate(float v) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v));
    return power;
}
#endif

/// The same number, from which nothing is computed ahead: for loops that have no registers to keep such results in.
__device__ __forceinline__ int here(int v) {
    asm volatile("" : "+r"(v));
    return v;
}

/// A matrix descriptor (9.7.15.5.1.2, "Matrix descriptor") of what lies in rows of 128 bytes with the swizzle of 128 bytes, from
/// row `row`, a multiple of 8, on of the tile at `tile`, a multiple of 1024. Eight rows are 1024 bytes, the stride; the base
/// offset is zero since tiles are aligned.
__device__ __forceinline__ uint64_t descriptor(const unsigned char* tile, int row, int leading) {
    const uint32_t at = shared_address(tile) + (uint32_t)(row * ROW_BYTES);
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(leading >> 4) << 16 | (at & 0x3ffff) >> 4;
}
/// An operand of wgmma that lies in rows of k: its first slice, from the tile's row `row` on. What is given for the leading
/// direction is not used with a swizzle.
__device__ __forceinline__ uint64_t operand(const unsigned char* tile, int row) { return descriptor(tile, row, 16); }
/// The same of another slice; the swizzle is by address, and does not mind.
__device__ __forceinline__ uint64_t slice_of(uint64_t operand, int slice) { return operand + (uint64_t)(slice * (32 >> 4)); }

/// A second operand of wgmma that lies in rows of columns of what is multiplied, 64 to a row, which is one of k ("MN-major"): its
/// 16 rows of k from `row` on. The leading direction is that of columns: 64 further ones are `leading` bytes further; the
/// stride is from 8 rows of k to the next (9.7.15.5.1.2, "Strides").
__device__ __forceinline__ uint64_t transposed_operand(const unsigned char* tile, int row, int leading) {
    return descriptor(tile, row, leading);
}

/// Which result register `i` of an accumulator is: of row `fragment_row`, and column `fragment_column` (9.7.15.5.1.1).
__device__ __forceinline__ int fragment_row(int i) {
    const int thread = (int)threadIdx.x % WARPGROUP;
    return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
__device__ __forceinline__ int fragment_column(int i) { return i / 4 * 8 + (int)threadIdx.x % 4 * 2 + i % 2; }

/// A stage, and the parity of the phase that its barriers are in when it is come to.
template <int STAGES>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/// What a launch asks for, for memory that is an `M`: tiles begin at a multiple of 1024 of shared memory, which may begin at any
/// multiple of 16.
template <class M>
constexpr int SHARED_BYTES = (int)sizeof(M) + 1024;

/// The memory of a block. One thread makes its barriers ready before `__syncthreads`.
template <class M>
__device__ __forceinline__ M& memory_in(unsigned char* dynamic) {
    return *(M*)(dynamic + (-shared_address(dynamic) & 1023));
}

/// The barriers of a ring: `full` ends a phase when so many threads have arrived, `empty` when so many warps have.
template <class M>
__device__ __forceinline__ void init_ring(M& memory, int copiers, int consumer_warps) {
    for (int i = 0; i < M::STAGES; i++) {
        mbarrier_init(&memory.full[i], copiers);
        mbarrier_init(&memory.empty[i], consumer_warps);
    }
}

/// Hands back what this warp has read everything of.
__device__ __forceinline__ void release(uint64_t* empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}
/// The same of a stage.
template <class M>
__device__ __forceinline__ void release(M& memory, int stage) {
    release(&memory.empty[stage]);
}
