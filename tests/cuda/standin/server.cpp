// A device that is driven through its standard input and output: memory, copies and launches, for `device.rs`.
//
// Every request is a byte and numbers of 64 bits, little-endian:
//   'A' bytes                     new memory, filled with bytes of ones       -> its address
//   'W' address bytes, the bytes  copies to it
//   'R' address bytes             copies from it                              -> the bytes
//   'T' address, rows, bytes of a row, rows of a box   -> a tensor map of the matrix, in swizzled boxes of 128 bytes
//   'L' order, grid (3), block (3), shared, name length, name, arguments, each: length and bytes      -> 0
// A launch that is not right ends the program with a message on the standard error.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"
#include "runtime.h"
#include "tma.h"

namespace {

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

uint64_t allocate(size_t bytes) {
    const unsigned char* memory = standin::allocate(bytes, nullptr);
    if (!memory) standin::fail("no memory");
    return uint64_t(memory);
}

unsigned char* checked(uint64_t address, size_t bytes) {
    auto memory = reinterpret_cast<unsigned char*>(address);
    if (!standin::is_within(memory, bytes, nullptr)) standin::fail("a copy outside the memory");
    return memory;
}

void tensor_map() {
    const uint64_t address = number(), rows = number(), row_bytes = number();
    const uint64_t dims[2] = {row_bytes, rows}, strides[1] = {row_bytes};
    const uint32_t box[2] = {128, uint32_t(number())}, steps[2] = {1, 1};
    alignas(128) unsigned char map[standin::TENSOR_MAP_BYTES];
    checked(address, rows * row_bytes);
    const standin::Tiled tiled{0, 2, reinterpret_cast<void*>(address), dims, strides, box, steps, 0, 3, 3, 0};
    if (const auto wrong = standin::encode(tiled, map)) standin::fail("a tensor map with " + *wrong);
    answer(map, sizeof map);
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
    answer(0);
}

void serve() {
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
            case 'T':
                tensor_map();
                break;
            case 'L':
                launch();
                break;
            default:
                standin::fail("no such request");
        }
    }
}

}  // namespace

int main() {
    try {
        serve();
    } catch (const standin::Failure& failure) {
        fprintf(stderr, "%s\n", failure.message.c_str());
        _Exit(97);
    }
}
