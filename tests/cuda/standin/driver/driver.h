// A stand-in for the library of NVIDIA's driver, libcuda: host code runs over it on a machine with no GPU, with the kernels
// on the processor. README.md says what it is strict about.
//
// All calls are made under one lock. Work that is queued runs when somebody waits for it, in the thread that waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../runtime.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

/// Statuses of the driver that the stand-in gives itself; errors.cpp has the names of all.
typedef int CUresult;
enum : CUresult {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_ISOLATION = 905,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
/// Handles are numbers that are given once: one that is no longer valid is refused.
typedef struct Handle* CUhandle;

namespace driver {

/// What tests decide: from the environment when the driver is first called, and by `mmada_standin_set`.
struct Settings {
    int devices = 1;
    size_t memory = size_t(8) << 30;  // of each device
    int version = 11080;              // of the driver: 1000 major + 10 minor
    int major = 8, minor = 6;         // the devices' compute capability
    int multiprocessors = 4;
    std::string name = "Stand-in";
    bool quiet = false;  // messages are not written
    std::string skip_kernel;  // one that does nothing, so that its results are wrong
    std::string fail_kernel;  // one that ends the context
    CUresult kernel_error = LAUNCH_FAILED;
    // what is to fail: the number of calls until then, 0 for never; modules and graphs for want of memory
    uint64_t fail_launch = 0, fail_allocation = 0, fail_module = 0, fail_graph = 0;
    CUresult launch_error = LAUNCH_FAILED;
    // whether a device that an error has ended begins anew once nobody has its context any more. NVIDIA promises it of no
    // error: "the process must be terminated and relaunched"
    bool recovers = false;
};
Settings& settings();
Settings settings_of_environment();

/// What has happened in the process; `mmada_standin_count` gives each by its name.
struct Counters {
    uint64_t launch_calls = 0;  // of cuLaunchKernel, whether work was recorded or queued
    uint64_t graph_launches = 0;
    uint64_t kernels = 0;  // that ran, those of graphs too
    uint64_t waits = 0;    // of the host for a stream, an event or a context
    uint64_t bytes_up = 0, bytes_down = 0;
    uint64_t allocations = 0, bytes = 0, peak_bytes = 0;  // of device memory that has not been freed
    uint64_t pinned = 0;                                  // pieces of host memory that have not been freed
    uint64_t objects = 0;                                 // streams, events, modules, graphs that have not been destroyed
    uint64_t contexts = 0;                                // that are retained
    std::map<std::string, uint64_t> ran;                  // kernels by name
};
Counters& counters();

/// Whether a call is the one that is to fail, of those that `calls` counts down.
bool is_to_fail(uint64_t& calls);

/// Whether an error stays: every later call of the context gives it.
bool is_sticky(CUresult error);

struct Context;
struct Stream;
struct Event;
struct Module;
struct Function;

typedef std::function<void()> Work;
/// What a graph does, in order.
typedef std::vector<Work> Recorded;

/// What an injected failure throws when its work runs.
struct Lost {
    CUresult error;
};

/// The primary context of a device.
struct Context {
    unsigned retained = 0;
    CUresult error = SUCCESS;  // that stays
    size_t used = 0;           // bytes of memory
    std::map<CUdeviceptr, size_t> allocations;
    std::map<uintptr_t, size_t> pinned;
    std::shared_ptr<Stream> legacy;  // the stream that null means
};

/// Handles are given once in a process.
CUhandle new_handle();

/// All objects of a kind by their handles.
template <class T>
class Handles {
   public:
    CUhandle add(std::shared_ptr<T> object) {
        const CUhandle handle = new_handle();
        all[handle] = std::move(object);
        counters().objects++;
        return handle;
    }
    std::shared_ptr<T> find(CUhandle handle) const {
        auto found = all.find(handle);
        return found == all.end() ? nullptr : found->second;
    }
    std::shared_ptr<T> remove(CUhandle handle) {
        auto object = find(handle);
        counters().objects -= all.erase(handle);
        return object;
    }
    template <class F>
    void each(F f) const {
        for (const auto& [handle, object] : all) f(object);
    }
    /// Forgets some without counting them as destroyed.
    template <class F>
    void forget(F which) {
        for (auto at = all.begin(); at != all.end();) at = which(*at->second) ? all.erase(at) : std::next(at);
    }

   private:
    std::map<CUhandle, std::shared_ptr<T>> all;
};

struct State {
    std::mutex lock;
    bool initialized = false;
    std::map<CUdevice, Context> contexts;  // their addresses are their handles
    Handles<Stream> streams;
    Handles<Event> events;
    Handles<Module> modules;
    Handles<Recorded> graphs, executables;
    std::string message;  // the last
};
/// Never destroyed: threads may call until the process is gone.
State& state();

/// The context of the calling thread, whether valid or not.
Context*& current();

/// Most shared memory that a block of threads may ask for.
size_t opt_in_shared();

/// What a status alone would not tell: on the standard error, or for `mmada_standin_message`.
void explain(const std::string& message);

/// A call under the lock.
template <class F>
CUresult call(F body) {
    std::lock_guard<std::mutex> lock(state().lock);
    if (!state().initialized) return NOT_INITIALIZED;
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

/// A call that needs a context.
template <class F>
CUresult in_context(F body) {
    return call([&]() -> CUresult {
        Context* context = current();
        if (!context || !context->retained) return INVALID_CONTEXT;
        return context->error ? context->error : body(*context);
    });
}

// streams.cpp

/// The stream of a handle, null for none of this context; a null handle is the legacy stream.
std::shared_ptr<Stream> stream_of(Context& context, CUhandle handle);
/// Work in order: recorded while the stream is captured, queued otherwise. The status to return.
CUresult enqueue(Context& context, const std::shared_ptr<Stream>& stream, Work work);
/// As `enqueue`, for a launch: it may be the one that a test wants to fail.
CUresult launch_or_fail(Context& context, const std::shared_ptr<Stream>& stream, Work work);
/// What a call gives that must not be made while this thread, or any in the global mode, captures; it ends the captures.
CUresult unsafe_while_capturing(Context& context, const char* call);
/// What a copy of pageable memory gives while the stream is captured. NVIDIA's driver records some of them; none is safe.
CUresult refuse_pageable(Stream& stream);
/// Runs all that a stream, or the whole context, has queued.
CUresult finish(Context& context, Stream& stream);
CUresult finish_all(Context& context);
void drop_streams(Context& context);

// memory.cpp and modules.cpp: what a context takes with it when it ends

void drop_memory(Context& context);
void drop_modules(Context& context);

}  // namespace driver
