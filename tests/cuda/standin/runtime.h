// Runs CUDA kernels on the processor: a fiber for every CUDA thread of a block, a block after the other.
//
// A fiber runs until it waits: at a barrier, or at a warp operation until the last lane of its mask has come. Built with
// STANDIN_THREADS, every fiber is a thread of ThreadSanitizer's, and only what orders memory on a GPU orders it here:
// barriers and __syncwarp, but no shuffle and no matrix product. The files of the stand-in itself are compiled without
// the sanitizer, so that it looks at kernels alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace standin {

struct Dim3 {
    unsigned x, y, z;
};

// What kernels ask for.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
const Dim3& grid_size();
unsigned lane();
void barrier();
void sync_warp(unsigned mask);
uint64_t shuffle(unsigned mask, uint64_t bits, unsigned from);
unsigned ballot(unsigned mask, bool predicate);
unsigned char* dynamic_shared();
int new_slot();
void* shared_slot(int slot, size_t bytes);

/// That a kernel, or what launches it, does wrong.
struct Failure {
    std::string message;
};

/// Throws `Failure` out of `launch`, with the kernel, the block and the thread in its message; or out of what was called
/// outside a launch. A block's threads never go on: their stacks are given up.
[[noreturn]] void fail(const std::string& message);

// What warp-wide PTX is made of: all lanes of the warp bring `in`, the last one to come calls `work` with all of them, in
// the order of the lanes, and then every one goes on. `operation` must be the same in all lanes.
typedef void (*Work)(void* const (&in)[32], unsigned mask);
void together(unsigned mask, int operation, void* in, Work work);

// The same of a warpgroup: 128 threads from a multiple of 128 on, the number of the first.
typedef void (*GroupWork)(void* const (&in)[128], unsigned first);
void together_in_group(int operation, void* in, GroupWork work);

// A copy of 4 or 16 bytes to shared memory on its way (cp.async); null for zeros.
void start_copy(void* to, const void* from, size_t bytes);
void commit_copies();
void finish_copies(int groups_left);
/// How many copies the current CUDA thread has started; and the end of those of a thread up to such a number, with a call of
/// `copied` for each.
uint64_t copies_started();
void finish_copies_of(unsigned thread, uint64_t started, void (*copied)(void* to, size_t bytes));
/// Whether the current CUDA thread's copies have arrived since this was last made false.
bool& copied_unfenced();

// Where the block's shared memory is, as the offset that PTX has for an address, and back.
uint32_t shared_offset(const void* at);
void* shared_at(uint32_t offset, size_t bytes);

/// The number of the current CUDA thread in its block.
unsigned number();

// Lets others run until one of them wakes those that wait for this.
void wait_for(const void* what);
void wake(const void* what);

/// Functions to call before and after every block.
struct Blocks {
    Blocks(void (*begin)(), void (*end)());
};

// For ThreadSanitizer: what the current CUDA thread did before the one comes before what it does after the other.
void release(void* what);
void acquire(void* what);

/// For ThreadSanitizer: that the current CUDA thread reads or writes 16 bytes.
void reads_16(const void* at);
void writes_16(void* at);

/// While there is one, what the current CUDA thread does is not for ThreadSanitizer, which knows memcpy and the like wherever
/// they are called. No other thread may get its turn meanwhile.
struct Unseen {
    Unseen();
    ~Unseen();
};

/// Kernels by name. Arguments come as an array of pointers to their values, as cuLaunchKernel takes them; `sizes` checks
/// that they are as long as the parameters.
struct Kernel {
    void (*call)(void** arguments);
    const size_t* sizes;
    size_t count;
};
struct Registration {
    Registration(const char* name, Kernel kernel);
};
const Kernel* find(const std::string& name);

template <auto F>
struct Call;
template <class... A, void (*F)(A...)>
struct Call<F> {
    static constexpr size_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
    /// Arguments may lie less aligned than parameters do.
    template <class T>
    static T value(const void* argument) {
        T value;
        __builtin_memcpy(&value, argument, sizeof value);
        return value;
    }
    template <size_t... I>
    static void spread(void** arguments, std::index_sequence<I...>) {
        F(value<A>(arguments[I])...);
    }
    static void call(void** arguments) { spread(arguments, std::index_sequence_for<A...>{}); }
    static constexpr Kernel with{&call, sizes, sizeof...(A)};
};

/// Most bytes of shared memory that a block has: 99 KiB, those of compute capability 8.6; and of 9.0, for kernels that are for
/// it alone, whose names end in _sm90.
constexpr size_t MAX_SHARED = 99 << 10, MAX_SHARED_SM90 = 227 << 10;

/// Runs all blocks of a launch. `order` changes in which order threads take turns.
void launch(const std::string& name, const Kernel& kernel, Dim3 grid, Dim3 block, size_t shared, void** arguments,
            unsigned order);

}  // namespace standin
