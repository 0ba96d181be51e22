// Starting the driver, devices, and their contexts.
#include <cstdio>
#include <cstring>

#include "driver.h"

namespace driver {

State& state() {
    static auto& state = *new State;
    return state;
}

Context*& current() {
    thread_local Context* context = nullptr;
    return context;
}

CUhandle new_handle() {
    static uintptr_t last = 0x1000;
    return reinterpret_cast<CUhandle>(last += 0x10);
}

void explain(const std::string& message) {
    state().message = message;
    if (!settings().quiet) fprintf(stderr, "stand-in for the CUDA driver: %s\n", message.c_str());
}

/// By compute capability (CUDA C++ Programming Guide, table of technical specifications).
size_t opt_in_shared() {
    const int capability = 10 * settings().major + settings().minor;
    if (capability < 70) return 48 << 10;
    if (capability < 75) return 96 << 10;
    if (capability < 80) return 64 << 10;
    if (capability == 80 || capability == 87) return 163 << 10;
    if (capability < 90 || capability >= 120) return 99 << 10;
    return 227 << 10;
}

namespace {

/// A call that names a device.
template <class F>
CUresult on_device(CUdevice device, F body) {
    return call([&]() -> CUresult {
        if (device < 0 || device >= settings().devices) return INVALID_DEVICE;
        return body(device);
    });
}

/// Numbers of attributes as cuDeviceGetAttribute has them.
std::optional<int> attribute(int number) {
    switch (number) {
        case 1:  // threads of a block, and its sizes
        case 2:
        case 3:
            return 1024;
        case 4:
            return 64;
        case 5:  // sizes of a grid
            return INT32_MAX;
        case 6:
        case 7:
            return 65535;
        case 8:  // shared memory of a block
            return 48 << 10;
        case 10:  // threads of a warp
            return 32;
        case 16:
            return settings().multiprocessors;
        case 18:  // whether it is part of the host's chip
            return 0;
        case 31:  // whether kernels run at a time
        case 41:  // one space of addresses
            return 1;
        case 75:
            return settings().major;
        case 76:
            return settings().minor;
        case 81:  // shared memory of a multiprocessor: the system keeps 1 KiB of each block
            return int(opt_in_shared()) + 1024;
        case 97:
            return int(opt_in_shared());
        default:
            return std::nullopt;
    }
}

/// The context of a handle, null if no device has it.
Context* context_of(CUhandle handle) {
    for (auto& [device, context] : state().contexts) {
        if (reinterpret_cast<CUhandle>(&context) == handle) return &context;
    }
    return nullptr;
}

/// What was not freed stays in the counters.
void destroy(Context& context) {
    drop_streams(context);
    drop_modules(context);
    drop_memory(context);
}

}  // namespace
}  // namespace driver

using namespace driver;

EXPORT CUresult cuInit(unsigned flags) {
    std::lock_guard<std::mutex> lock(state().lock);
    if (flags) return INVALID_VALUE;
    if (!settings().devices) return NO_DEVICE;
    state().initialized = true;
    return SUCCESS;
}

/// The only one besides the names of errors that may come before cuInit.
EXPORT CUresult cuDriverGetVersion(int* version) {
    std::lock_guard<std::mutex> lock(state().lock);
    if (!version) return INVALID_VALUE;
    *version = settings().version;
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
    return call([&]() -> CUresult {
        if (!count) return INVALID_VALUE;
        *count = settings().devices;
        return SUCCESS;
    });
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return on_device(ordinal, [&](CUdevice found) -> CUresult {
        if (!device) return INVALID_VALUE;
        *device = found;
        return SUCCESS;
    });
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    return on_device(device, [&](CUdevice) -> CUresult {
        if (!name || length <= 0) return INVALID_VALUE;
        snprintf(name, size_t(length), "%s", settings().name.c_str());
        return SUCCESS;
    });
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    return on_device(device, [&](CUdevice) -> CUresult {
        if (!bytes) return INVALID_VALUE;
        *bytes = settings().memory;
        return SUCCESS;
    });
}

EXPORT CUresult cuDeviceGetAttribute(int* value, int number, CUdevice device) {
    return on_device(device, [&](CUdevice) -> CUresult {
        const auto found = attribute(number);
        if (!found) explain("it knows no attribute " + std::to_string(number) + " of devices");
        if (!value || !found) return INVALID_VALUE;
        *value = *found;
        return SUCCESS;
    });
}

EXPORT CUresult cuDeviceGetUuid(unsigned char* uuid, CUdevice device) {
    return on_device(device, [&](CUdevice found) -> CUresult {
        if (!uuid) return INVALID_VALUE;
        memset(uuid, 0, 16);
        uuid[15] = static_cast<unsigned char>(found + 1);
        return SUCCESS;
    });
}
EXPORT CUresult cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }

EXPORT CUresult cuDevicePrimaryCtxRetain(CUhandle* handle, CUdevice device) {
    return on_device(device, [&](CUdevice) -> CUresult {
        Context& context = state().contexts[device];
        if (!handle) return INVALID_VALUE;
        if (context.error) return context.error;
        context.retained++;
        counters().contexts++;
        *handle = reinterpret_cast<CUhandle>(&context);
        return SUCCESS;
    });
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return on_device(device, [&](CUdevice) -> CUresult {
        Context& context = state().contexts[device];
        if (!context.retained) return INVALID_CONTEXT;
        const CUresult status = context.error ? context.error : finish_all(context);
        counters().contexts--;
        if (--context.retained == 0) {
            destroy(context);
            if (settings().recovers) context.error = SUCCESS;
        }
        return status;
    });
}

EXPORT CUresult cuCtxSetCurrent(CUhandle handle) {
    return call([&]() -> CUresult {
        Context* context = context_of(handle);
        if (handle && (!context || !context->retained)) return INVALID_CONTEXT;
        if (context && context->error) return context->error;
        current() = context;
        return SUCCESS;
    });
}

EXPORT CUresult cuCtxGetCurrent(CUhandle* handle) {
    return call([&]() -> CUresult {
        if (!handle) return INVALID_VALUE;
        *handle = reinterpret_cast<CUhandle>(current());
        return SUCCESS;
    });
}

/// As if the process began anew. Nothing that the driver has given may be used any more.
EXPORT void mmada_standin_restart() {
    std::lock_guard<std::mutex> lock(state().lock);
    for (auto& [device, context] : state().contexts) {
        destroy(context);
        context.retained = 0;
        context.error = SUCCESS;
    }
    state().graphs = {};
    state().executables = {};
    settings() = settings_of_environment();
    state().initialized = false;
    state().message.clear();
    counters() = {};
}
