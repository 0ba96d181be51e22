// The PTX of hopper.cuh; see warpgroups.cpp.
#pragma once

#include "language.h"

inline uint32_t shared_address(const void* at) { return standin::shared_offset(at); }

void set_registers(int count);
template <int REGISTERS>
void more_registers() {
    set_registers(REGISTERS);
}
template <int REGISTERS>
void fewer_registers() {
    set_registers(REGISTERS);
}

void mbarrier_init(uint64_t* barrier, uint32_t count);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_wait(uint64_t* barrier, uint32_t parity);

void cp_async_4(void* shared, const void* global, bool there);
void fence_async_proxy();

void trap_if(bool condition);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait_all_but(int groups);
template <int GROUPS>
void wgmma_wait() {
    wgmma_wait_all_but(GROUPS);
}
template <int GROUPS, class T, int N>
void wgmma_wait(T (&)[N]) {
    wgmma_wait_all_but(GROUPS);
}
template <int GROUPS, int N, int STEPS>
void wgmma_wait(float (&)[N], uint32_t (&)[STEPS][4]) {
    wgmma_wait_all_but(GROUPS);
}
void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b);
void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b);
void wgmma_bf16_new(float (&d)[64], uint64_t a, uint64_t b);
void wgmma_bf16_transposed(float (&d)[64], const uint32_t (&a)[4], uint64_t b);
void wgmma_bf16_transposed(float (&d)[32], const uint32_t (&a)[4], uint64_t b);
void wgmma_s8(int (&d)[64], uint64_t a, uint64_t b, bool add);

inline float exp2_approximate(float v) { return v < -126.0f ? 0.0f : exp2f(v); }
