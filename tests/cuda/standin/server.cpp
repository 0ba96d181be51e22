// A device that is driven through its standard input and output: memory, copies and launches, for `device.rs`.
//
// Every request is a byte and numbers of 64 bits, little-endian:
//   'A' bytes                     new memory, filled with bytes of ones       -> its address
//   'W' address bytes, the bytes  copies to it
//   'R' address bytes             copies from it                              -> the bytes
//   'L' order, grid (3), block (3), shared, name length, name, arguments, each: length and bytes      -> 0
// A launch that is not right ends the program with a message on the standard error.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include "runtime.h"

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 16;

struct Memory {
    size_t bytes;
    size_t padding;  // behind the bytes, to the next multiple of ALIGNMENT; keeps its ones
};
std::map<uint64_t, Memory> allocated;

void read_exactly(void* to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != bytes) _Exit(0);  // whoever drives the device has gone
}
uint64_t number() {
    uint64_t value;
    read_exactly(&value, sizeof value);
    return value;
}
void answer(const void* from, size_t bytes) {
    if (bytes) fwrite(from, 1, bytes, stdout);
    fflush(stdout);
}
void answer(uint64_t value) { answer(&value, sizeof value); }

/// Memory that ends where an inaccessible page begins (up to the alignment), with another before it.
uint64_t allocate(size_t bytes) {
    const size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t pages = (padded + PAGE - 1) / PAGE * PAGE;
    auto memory = static_cast<unsigned char*>(
        mmap(nullptr, pages + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED) standin::fail("no memory");
    mprotect(memory, PAGE, PROT_NONE);
    mprotect(memory + PAGE + pages, PAGE, PROT_NONE);
    unsigned char* start = memory + PAGE + pages - padded;
    memset(start, 0xff, padded);
    allocated[uint64_t(start)] = {bytes, padded - bytes};
    return uint64_t(start);
}

unsigned char* checked(uint64_t address, size_t bytes) {
    auto found = allocated.find(address);
    if (found == allocated.end() || bytes > found->second.bytes) standin::fail("a copy outside the memory");
    return reinterpret_cast<unsigned char*>(address);
}

void check_padding() {
    for (const auto& [address, memory] : allocated) {
        auto end = reinterpret_cast<const unsigned char*>(address) + memory.bytes;
        for (size_t i = 0; i < memory.padding; i++) {
            if (end[i] != 0xff) standin::fail("a write past the end of memory of " + std::to_string(memory.bytes) + " bytes");
        }
    }
}

standin::Dim3 dim3() {
    const uint64_t x = number(), y = number(), z = number();
    return {unsigned(x), unsigned(y), unsigned(z)};
}

void launch() {
    const uint64_t order = number();
    const standin::Dim3 grid = dim3(), block = dim3();
    const uint64_t shared = number();
    std::string name(number(), ' ');
    read_exactly(name.data(), name.size());
    std::vector<std::vector<uint64_t>> values(number());
    std::vector<size_t> sizes;
    std::vector<void*> pointers;
    for (auto& value : values) {
        sizes.push_back(number());
        value.resize((sizes.back() + 7) / 8);
        read_exactly(value.data(), sizes.back());
        pointers.push_back(value.data());
    }
    const standin::Kernel* kernel = standin::find(name);
    if (!kernel) standin::fail("there is no kernel " + name);
    if (sizes != std::vector<size_t>(kernel->sizes, kernel->sizes + kernel->count)) {
        standin::fail("the arguments of " + name + " do not have the sizes of its parameters");
    }
    standin::launch(name, *kernel, grid, block, shared, pointers.data(), unsigned(order));
    check_padding();
    answer(0);
}

}  // namespace

int main() {
    for (;;) {
        unsigned char request;
        read_exactly(&request, 1);
        switch (request) {
            case 'A':
                answer(allocate(number()));
                break;
            case 'W': {
                const uint64_t address = number(), bytes = number();
                read_exactly(checked(address, bytes), bytes);
                break;
            }
            case 'R': {
                const uint64_t address = number(), bytes = number();
                answer(checked(address, bytes), bytes);
                break;
            }
            case 'L':
                launch();
                break;
            default:
                standin::fail("no such request");
        }
    }
}
