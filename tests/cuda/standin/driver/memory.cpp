// Memory of the devices and of the host, and copies between them.
#include "../memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "driver.h"

namespace driver {
namespace {

constexpr size_t PAGE = 4096;

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

bool is_devices(Context& context, CUdeviceptr address, size_t bytes) {
    return standin::is_within(pointer(address), bytes, &context);
}

/// Whether the driver knows the host memory (cuMemHostAlloc): copies then reach it when they run.
bool is_pinned(Context& context, const void* at, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(at);
    auto after = context.pinned.upper_bound(address);
    if (after == context.pinned.begin()) return false;
    const auto& [start, size] = *std::prev(after);
    return address - start <= size && bytes <= size - (address - start);
}

size_t pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

/// A copy or a fill between addresses that have been checked.
template <class F>
CUresult transfer(CUhandle handle, F body) {
    return in_context([&](Context& context) -> CUresult {
        const auto stream = stream_of(context, handle);
        return stream ? body(context, stream) : INVALID_HANDLE;
    });
}

CUresult outside(const char* call) {
    explain(std::string(call) + " outside the memory of the device");
    return INVALID_VALUE;
}

}  // namespace

void drop_memory(Context& context) {
    for (const auto& [address, bytes] : context.allocations) standin::release(pointer(address), &context);
    for (const auto& [address, bytes] : context.pinned) munmap(pointer(address), pages(bytes) + PAGE);
    context.allocations.clear();
    context.pinned.clear();
    context.used = 0;
}

}  // namespace driver

using namespace driver;

EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    return in_context([&](Context& context) -> CUresult {
        if (!free || !total) return INVALID_VALUE;
        *total = settings().memory;
        *free = *total - std::min(context.used, *total);
        return SUCCESS;
    });
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    return in_context([&](Context& context) -> CUresult {
        if (!address || !bytes) return INVALID_VALUE;
        if (const CUresult status = unsafe_while_capturing(context, "cuMemAlloc")) return status;
        const size_t free = settings().memory - std::min(context.used, settings().memory);
        if (is_to_fail(settings().fail_allocation) || bytes > free) return OUT_OF_MEMORY;
        const unsigned char* memory = standin::allocate(bytes, &context);
        if (!memory) return OUT_OF_MEMORY;
        *address = CUdeviceptr(memory);
        context.allocations[*address] = bytes;
        context.used += bytes;
        Counters& count = counters();
        count.allocations++;
        count.bytes += bytes;
        count.peak_bytes = std::max(count.peak_bytes, count.bytes);
        return SUCCESS;
    });
}

/// Waits for all that is queued, as NVIDIA's driver does.
EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    return in_context([&](Context& context) -> CUresult {
        if (!address) return SUCCESS;
        if (const CUresult status = unsafe_while_capturing(context, "cuMemFree")) return status;
        auto found = context.allocations.find(address);
        if (found == context.allocations.end()) {
            explain("cuMemFree of what is no memory, or no longer");
            return INVALID_VALUE;
        }
        if (const CUresult status = finish_all(context)) return status;
        standin::release(pointer(address), &context);
        context.used -= found->second;
        counters().allocations--;
        counters().bytes -= found->second;
        context.allocations.erase(found);
        return SUCCESS;
    });
}

/// Whole pages, with an inaccessible one behind.
EXPORT CUresult cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
    return in_context([&](Context& context) -> CUresult {
        if (!memory || !bytes || flags > 7) return INVALID_VALUE;
        if (const CUresult status = unsafe_while_capturing(context, "cuMemHostAlloc")) return status;
        if (is_to_fail(settings().fail_allocation) || bytes > SIZE_MAX / 2) return OUT_OF_MEMORY;
        void* mapped =
            mmap(nullptr, pages(bytes) + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
        mprotect(static_cast<unsigned char*>(mapped) + pages(bytes), PAGE, PROT_NONE);
        memset(mapped, 0xff, bytes);
        *memory = mapped;
        context.pinned[uintptr_t(mapped)] = bytes;
        counters().pinned++;
        return SUCCESS;
    });
}

EXPORT CUresult cuMemFreeHost(void* memory) {
    return in_context([&](Context& context) -> CUresult {
        if (const CUresult status = unsafe_while_capturing(context, "cuMemFreeHost")) return status;
        auto found = context.pinned.find(uintptr_t(memory));
        if (found == context.pinned.end()) return INVALID_VALUE;
        if (const CUresult status = finish_all(context)) return status;
        munmap(memory, pages(found->second) + PAGE);
        context.pinned.erase(found);
        counters().pinned--;
        return SUCCESS;
    });
}

/// Memory that the driver does not know is read at once; what it does know, when the copy runs.
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUhandle handle) {
    return transfer(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!bytes) return SUCCESS;
        if (!from || !is_devices(context, to, bytes)) return outside("cuMemcpyHtoDAsync");
        counters().bytes_up += bytes;
        if (is_pinned(context, from, bytes)) {
            return enqueue(context, stream, [=] { memcpy(pointer(to), from, bytes); });
        }
        if (const CUresult status = refuse_pageable(*stream)) return status;
        auto start = static_cast<const unsigned char*>(from);
        auto staged = std::make_shared<std::vector<unsigned char>>(start, start + bytes);
        return enqueue(context, stream, [=] { memcpy(pointer(to), staged->data(), bytes); });
    });
}

/// To memory that the driver does not know it has copied when it returns.
EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUhandle handle) {
    return transfer(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!bytes) return SUCCESS;
        if (!to || !is_devices(context, from, bytes)) return outside("cuMemcpyDtoHAsync");
        counters().bytes_down += bytes;
        const bool pinned = is_pinned(context, to, bytes);
        if (const CUresult status = pinned ? SUCCESS : refuse_pageable(*stream)) return status;
        const CUresult status = enqueue(context, stream, [=] { memcpy(to, pointer(from), bytes); });
        return status || pinned ? status : finish(context, *stream);
    });
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUhandle handle) {
    return transfer(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!bytes) return SUCCESS;
        if (!is_devices(context, to, bytes) || !is_devices(context, from, bytes)) return outside("cuMemcpyDtoDAsync");
        return enqueue(context, stream, [=] { memmove(pointer(to), pointer(from), bytes); });
    });
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUhandle handle) {
    return transfer(handle, [&](Context& context, const std::shared_ptr<Stream>& stream) -> CUresult {
        if (!bytes) return SUCCESS;
        if (!is_devices(context, to, bytes)) return outside("cuMemsetD8Async");
        return enqueue(context, stream, [=] { memset(pointer(to), value, bytes); });
    });
}
