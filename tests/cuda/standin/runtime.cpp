#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "memory.h"

#ifdef STANDIN_THREADS
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* at);
void __tsan_release(void* at);
void __tsan_read16(void* at);
void __tsan_write16(void* at);
void __tsan_read4(void* at);
void __tsan_write4(void* at);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define SANITIZER(call) call
#else
#define SANITIZER(call)
#endif

#ifndef __x86_64__
#error "fibers are switched in assembly, which is written for x86-64 only"
#endif

// Saves the stack and the registers that a called function must keep, and goes on where `to` was saved.
extern "C" void standin_switch(void** save, void* to);
asm(R"(
    .text
    .globl standin_switch
standin_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace standin {
namespace {

enum class State { Runs, AtBarrier, InWarp, InGroup, Waits, Done };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    int group;
    uint64_t number;
};

struct Thread {
    void* stack_pointer = nullptr;
    State state = State::Done;
    Dim3 index{};
    unsigned number = 0;
    std::vector<Copy> copies;
    uint64_t copies_started = 0;
    int copy_group = 0;
    bool copied_unfenced = false;
    char copied = 0;  // for ThreadSanitizer: what it has waited for itself comes before the arrival that waits for it too
    const void* waits_for = nullptr;
    void* fiber = nullptr;  // ThreadSanitizer's
};

/// A warp operation for which some lanes are still to come.
struct Warp {
    unsigned arrived = 0, mask = 0;
    int operation = 0;
    void* in[32];
    // what __syncwarp orders: two, so that a lane that is already at the next one does not order this one's stragglers
    char ordered[2];
    unsigned syncs = 0;
};

/// A warpgroup operation for which some threads are still to come.
struct Group {
    unsigned arrived = 0;
    int operation = 0;
    void* in[128];
};

constexpr size_t STACK = 128 << 10;
constexpr size_t PAGE = 4096;
constexpr size_t ARENA = 256 << 10;
constexpr unsigned ALL_LANES = 0xffffffffu;

std::vector<Thread> threads;
std::vector<unsigned> turns;        // the order of the threads, and where each stands in it
std::vector<unsigned> place;
std::vector<Warp> warps;
std::vector<Group> groups;
std::vector<std::pair<void (*)(), void (*)()>>& hooks() {
    static std::vector<std::pair<void (*)(), void (*)()>> all;
    return all;
}
Thread* current;
Dim3 block_now, grid_now, size_now;
std::string kernel_name;
const Kernel* kernel_now;
void** arguments_now;
unsigned at_barrier, done;
bool failed;
Failure failure;
[[maybe_unused]] char barrier_ordered[2], launch_ordered[2];
unsigned barriers;
void* main_stack_pointer;
[[maybe_unused]] void* main_fiber;
unsigned char* stacks;
size_t stack_count;

/// Shared memory of the block: declared variables from the front, what the launch asks for at the end, where a guard page
/// follows.
unsigned char* arena;
size_t arena_used, dynamic_bytes, most_shared;
std::vector<void*> slots;
int slot_count;

std::map<std::string, Kernel>& registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

void* map(void* at, size_t bytes) {
    const int fixed = at ? MAP_FIXED : 0;
    void* memory = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
    if (memory == MAP_FAILED) fail("no memory");
    return memory;
}

std::string text(const Dim3& v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

// For ThreadSanitizer: that the current CUDA thread reads or writes 4 or 16 bytes.
void reads(const void* at, size_t bytes) {
    SANITIZER(bytes == 4 ? __tsan_read4(const_cast<void*>(at)) : __tsan_read16(const_cast<void*>(at)));
    (void)at, (void)bytes;
}
void writes(void* at, size_t bytes) {
    SANITIZER(bytes == 4 ? __tsan_write4(at) : __tsan_write16(at));
    (void)at, (void)bytes;
}

void switch_to_main() {
    SANITIZER(__tsan_switch_to_fiber(main_fiber, 1));
    standin_switch(&current->stack_pointer, main_stack_pointer);
}

/// Lets others run until this thread's state is `Runs` again.
void wait() {
    Thread* self = current;
    // the next in turn that can run; where there is none, whoever started the block finds out why
    const unsigned count = unsigned(threads.size());
    for (unsigned i = 1; i < count; i++) {
        Thread& next = threads[turns[(place[self->number] + i) % count]];
        if (next.state == State::Runs) {
            current = &next;
            SANITIZER(__tsan_switch_to_fiber(next.fiber, 1));
            standin_switch(&self->stack_pointer, next.stack_pointer);
            return;
        }
    }
    switch_to_main();
}

extern "C" void standin_thread() {
    SANITIZER(__tsan_acquire(&launch_ordered[0]));
    kernel_now->call(arguments_now);
    if (!current->copies.empty()) fail("a thread ends while its copies are on their way");
    current->state = State::Done;
    done++;
    SANITIZER(__tsan_release(&launch_ordered[1]));
    wait();
    abort();  // nobody goes on with a thread that is done
}

void start_thread(Thread& thread, unsigned number) {
    thread.state = State::Runs;
    thread.number = number;
    thread.index = {number % size_now.x, number / size_now.x % size_now.y, number / size_now.x / size_now.y};
    thread.copies.clear();
    thread.copies_started = 0;
    thread.copy_group = 0;
    thread.copied_unfenced = false;
    SANITIZER(if (!thread.fiber) thread.fiber = __tsan_create_fiber(0));
    // as `standin_switch` leaves a stack: six registers and where to return to, which is aligned as after a call
    auto top = reinterpret_cast<void**>(stacks + STACK * (number + 1));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&standin_thread);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    thread.stack_pointer = top;
}

/// Every block finds bytes of ones in its shared memory: NaN as floats.
void renew_arena() {
    if (!arena) {
        // with an inaccessible page on either side
        auto memory = static_cast<unsigned char*>(map(nullptr, ARENA + 2 * PAGE));
        arena = memory + PAGE;
        mprotect(memory, PAGE, PROT_NONE);
        mprotect(arena + ARENA, PAGE, PROT_NONE);
    }
    // a new mapping, which ThreadSanitizer takes for new memory: blocks do not share it
    SANITIZER(map(arena, ARENA));
    memset(arena, 0xff, ARENA);
    SANITIZER(__tsan_release(&launch_ordered[0]));
    arena_used = 0;
    slots.assign(size_t(slot_count), nullptr);
}

/// For ThreadSanitizer: all that threads did comes before what follows, also where they never come to their ends.
void join_all() {
    SANITIZER(for (Thread& thread : threads) {
        if (!thread.fiber || !main_fiber) continue;
        __tsan_switch_to_fiber(thread.fiber, 0);
        __tsan_switch_to_fiber(main_fiber, 0);
    });
}

void run_block(unsigned order) {
    const unsigned count = unsigned(threads.size());
    renew_arena();
    warps.assign((count + 31) / 32, Warp());
    groups.assign(count / 128, Group());
    for (const auto& [begin, end] : hooks()) begin();
    at_barrier = done = 0;
    for (unsigned i = 0; i < count; i++) start_thread(threads[i], i);
    for (unsigned i = 0; i < count; i++) turns[i] = order % 3 == 1 ? count - 1 - i : i;
    if (order % 3 == 2) {
        uint32_t random = order * 2654435761u + block_now.x;
        for (unsigned i = count - 1; i > 0; i--) {
            random = random * 1664525u + 1013904223u;
            std::swap(turns[i], turns[(random >> 8) % (i + 1)]);
        }
    }
    for (unsigned i = 0; i < count; i++) place[turns[i]] = i;
    while (done < count) {
        auto ready = std::find_if(turns.begin(), turns.end(), [](unsigned t) { return threads[t].state == State::Runs; });
        if (ready == turns.end()) {
            current = nullptr;
            const bool waits =
                std::any_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::Waits; });
            fail(waits                ? "all threads wait, some for an mbarrier"
                 : at_barrier && done ? "some threads wait at __syncthreads that others will never come to"
                                      : "all threads wait: lanes of a warp are at different operations");
        }
        current = &threads[*ready];
        SANITIZER(__tsan_switch_to_fiber(current->fiber, 1));
        standin_switch(&main_stack_pointer, current->stack_pointer);
        if (failed) {
            join_all();
            // it may have failed while there was an `Unseen`, which would stay
            current->fiber = nullptr;
            throw Failure(failure);
        }
    }
    current = nullptr;
    for (const auto& [begin, end] : hooks()) end();
}

}  // namespace

void fail(const std::string& message) {
    failure.message = message;
    if (current) failure.message = "thread " + text(current->index) + ": " + failure.message;
    if (kernel_now) failure.message = "kernel " + kernel_name + ", block " + text(block_now) + ", " + failure.message;
    if (!current) {
        join_all();
        throw Failure(failure);
    }
    failed = true;
    switch_to_main();
    abort();  // nobody goes on with a thread that has failed
}

const Dim3& thread_index() { return current->index; }
const Dim3& block_index() { return block_now; }
const Dim3& block_size() { return size_now; }
const Dim3& grid_size() { return grid_now; }
unsigned lane() { return current->number % 32; }
unsigned number() { return current->number; }
unsigned char* dynamic_shared() { return arena + ARENA - rounded(dynamic_bytes, 128); }
int new_slot() {
    slots.push_back(nullptr);  // for a block that is running
    return slot_count++;
}

void* shared_slot(int slot, size_t bytes) {
    if (!slots[size_t(slot)]) {
        if (arena_used + bytes + dynamic_bytes > most_shared) fail("more shared memory than a block has");
        slots[size_t(slot)] = arena + arena_used;
        arena_used += rounded(bytes, 128);
    }
    return slots[size_t(slot)];
}

void barrier() {
    char* ordered = &barrier_ordered[barriers % 2];
    SANITIZER(__tsan_release(ordered));
    if (++at_barrier == threads.size()) {
        at_barrier = 0;
        barriers++;
        for (Thread& thread : threads) thread.state = State::Runs;
    } else {
        current->state = State::AtBarrier;
        wait();
    }
    SANITIZER(__tsan_acquire(ordered));
    (void)ordered;
}

void together(unsigned mask, int operation, void* in, Work work) {
    Warp& warp = warps[current->number / 32];
    const unsigned self = lane(), first = current->number - self;
    if (!(mask >> self & 1)) fail("a lane is not in its own mask");
    if (!warp.arrived) {
        warp.mask = mask;
        warp.operation = operation;
    } else if (warp.mask != mask || warp.operation != operation) {
        fail("lanes of a warp are at different operations or have different masks");
    }
    warp.arrived |= 1u << self;
    warp.in[self] = in;
    if (warp.arrived != mask) {
        current->state = State::InWarp;
        wait();
        return;
    }
    work(warp.in, mask);
    warp.arrived = 0;
    for (unsigned l = 0; l < 32; l++) {
        if (mask >> l & 1) threads[first + l].state = State::Runs;
    }
}

void together_in_group(int operation, void* in, GroupWork work) {
    const unsigned self = current->number % 128, first = current->number - self;
    if (first / 128 >= groups.size()) fail("a warpgroup of fewer than 128 threads");
    Group& group = groups[first / 128];
    if (!group.arrived) {
        group.operation = operation;
    } else if (group.operation != operation) {
        fail("threads of a warpgroup are at different operations");
    }
    group.in[self] = in;
    if (++group.arrived != 128) {
        current->state = State::InGroup;
        wait();
        return;
    }
    work(group.in, first);
    group.arrived = 0;
    for (unsigned i = 0; i < 128; i++) threads[first + i].state = State::Runs;
}

void wait_for(const void* what) {
    current->state = State::Waits;
    current->waits_for = what;
    wait();
}

void wake(const void* what) {
    for (Thread& thread : threads) {
        if (thread.state == State::Waits && thread.waits_for == what) thread.state = State::Runs;
    }
}

Blocks::Blocks(void (*begin)(), void (*end)()) { hooks().push_back({begin, end}); }

uint32_t shared_offset(const void* at) {
    const auto offset = size_t(static_cast<const unsigned char*>(at) - arena);
    if (offset >= ARENA) fail("an address that is not in shared memory");
    return uint32_t(offset);
}

void* shared_at(uint32_t offset, size_t bytes) {
    if (offset + bytes > ARENA) fail("a read past the end of shared memory");
    return arena + offset;
}

Unseen::Unseen() {
    SANITIZER(AnnotateIgnoreReadsBegin(__FILE__, __LINE__));
    SANITIZER(AnnotateIgnoreWritesBegin(__FILE__, __LINE__));
}
Unseen::~Unseen() {
    SANITIZER(AnnotateIgnoreWritesEnd(__FILE__, __LINE__));
    SANITIZER(AnnotateIgnoreReadsEnd(__FILE__, __LINE__));
}

void release(void* what) {
    SANITIZER(__tsan_release(what));
    (void)what;
}
void acquire(void* what) {
    SANITIZER(__tsan_acquire(what));
    (void)what;
}

void sync_warp(unsigned mask) {
    Warp& warp = warps[current->number / 32];
    char* ordered = &warp.ordered[warp.syncs % 2];
    SANITIZER(__tsan_release(ordered));
    struct In {
        unsigned* syncs;
    } in{&warp.syncs};
    together(mask, 1, &in, [](void* const(&all)[32], unsigned mask) {
        for (int l = 0; l < 32; l++) {
            if (mask >> l & 1) {
                ++*static_cast<In*>(all[l])->syncs;
                break;
            }
        }
    });
    SANITIZER(__tsan_acquire(ordered));
    (void)ordered;
}

uint64_t shuffle(unsigned mask, uint64_t bits, unsigned from) {
    struct In {
        uint64_t bits, result;
        unsigned from;
    } in{bits, 0, from};
    together(mask, 2, &in, [](void* const(&all)[32], unsigned mask) {
        for (int l = 0; l < 32; l++) {
            if (!(mask >> l & 1)) continue;
            auto& in = *static_cast<In*>(all[l]);
            if (in.from > 31 || !(mask >> in.from & 1)) fail("a shuffle reads a lane outside its mask");
            in.result = static_cast<In*>(all[in.from])->bits;
        }
    });
    return in.result;
}

unsigned ballot(unsigned mask, bool predicate) {
    struct In {
        bool predicate;
        unsigned result;
    } in{predicate, 0};
    together(mask, 3, &in, [](void* const(&all)[32], unsigned mask) {
        unsigned votes = 0;
        for (int l = 0; l < 32; l++) {
            if (mask >> l & 1 && static_cast<In*>(all[l])->predicate) votes |= 1u << l;
        }
        for (int l = 0; l < 32; l++) {
            if (mask >> l & 1) static_cast<In*>(all[l])->result = votes;
        }
    });
    return in.result;
}

void start_copy(void* to, const void* from, size_t bytes) {
    writes(to, bytes);
    if (from) reads(from, bytes);
    current->copies.push_back({to, from, bytes, current->copy_group, current->copies_started++});
}

void commit_copies() { current->copy_group++; }

/// Ends the copies of a thread that are `ended`, with a call of `copied` for each.
template <class E, class C>
static void finish_some(Thread& thread, const E& ended, const C& copied) {
    size_t kept = 0;
    for (const Copy& copy : thread.copies) {
        if (!ended(copy)) {
            thread.copies[kept++] = copy;
            continue;
        }
        if (copy.from) {
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
        writes(copy.to, copy.bytes);
        copied(copy);
    }
    thread.copies.resize(kept);
}

void finish_copies(int groups_left) {
    const int until = current->copy_group - groups_left;
    finish_some(*current, [=](const Copy& copy) { return copy.group < until; },
                [](const Copy&) { current->copied_unfenced = true; });
    release(&current->copied);
}

uint64_t copies_started() { return current->copies_started; }

void finish_copies_of(unsigned thread, uint64_t started, void (*copied)(void* to, size_t bytes)) {
    acquire(&threads[thread].copied);
    finish_some(threads[thread], [=](const Copy& copy) { return copy.number < started; },
                [=](const Copy& copy) { copied(copy.to, copy.bytes); });
}

bool& copied_unfenced() { return current->copied_unfenced; }

void reads_16(const void* at) { reads(at, 16); }
void writes_16(void* at) { writes(at, 16); }

Registration::Registration(const char* name, Kernel kernel) { registry()[name] = kernel; }

const Kernel* find(const std::string& name) {
    auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

/// Writes the name of a kernel that has run to the file MMADA_CUDA_RAN, if there is one: of every process, each once.
static void tell(const std::string& name) {
    static const char* file = getenv("MMADA_CUDA_RAN");
    static auto& told = *new std::set<std::string>;
    if (!file || !told.insert(name).second) return;
    if (FILE* to = fopen(file, "a")) {
        fprintf(to, "%s\n", name.c_str());  // in one piece, at the end
        fclose(to);
    }
}

void launch(const std::string& name, const Kernel& kernel, Dim3 grid, Dim3 block, size_t shared, void** arguments,
            unsigned order) {
    current = nullptr;
    failed = false;
    kernel_name = name;
    kernel_now = &kernel;
    arguments_now = arguments;
    grid_now = grid;
    size_now = block;
    dynamic_bytes = shared;
    block_now = {0, 0, 0};
    const size_t count = size_t(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) fail("no such grid");
    if (!count || count > 1024 || count % 32) fail("a block is not of 1 to 32 whole warps");
    most_shared = name.size() > 5 && name.compare(name.size() - 5, 5, "_sm90") == 0 ? MAX_SHARED_SM90 : MAX_SHARED;
    if (shared > most_shared) fail("more shared memory than a block has");
    if (stack_count < count) {
        stacks = static_cast<unsigned char*>(map(nullptr, STACK * count));
        stack_count = count;
    }
    if (threads.size() != count) {
        std::vector<Thread> fresh(count);
        for (size_t i = 0; i < std::min(count, threads.size()); i++) fresh[i].fiber = threads[i].fiber;
        threads.swap(fresh);
        turns.resize(count);
        place.resize(count);
    }
    SANITIZER(main_fiber = __tsan_get_current_fiber());
    for (block_now.z = 0; block_now.z < grid.z; block_now.z++) {
        for (block_now.y = 0; block_now.y < grid.y; block_now.y++) {
            for (block_now.x = 0; block_now.x < grid.x; block_now.x++) run_block(order);
        }
    }
    SANITIZER(__tsan_acquire(&launch_ordered[1]));
    current = nullptr;
    check_padding();
    kernel_now = nullptr;
    tell(name);
}

}  // namespace standin
