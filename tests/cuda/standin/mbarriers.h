// Barriers in shared memory, and what arrives at them by itself; see mbarriers.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace standin {

/// A copy on its way that the current phase of a barrier waits for: `end` copies. Its bytes count there when it has ended.
void transact(uint64_t* barrier, uint32_t bytes, std::function<void()> end);

/// That the async proxy writes shared memory, which makes a fence for what was there before needless.
void wrote_async(const void* at, size_t bytes);

/// Whether cp.async has written some of 16 bytes of shared memory, which an mbarrier has announced and nothing has fenced.
bool is_unfenced(const void* at);

}  // namespace standin
