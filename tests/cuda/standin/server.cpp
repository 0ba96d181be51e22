// A device that is driven through its standard input and output: memory, copies and launches, for `device.rs`.
//
// Every request is a byte and numbers of 64 bits, little-endian:
//   'A' bytes                     new memory, filled with bytes of ones       -> its address
//   'W' address bytes, the bytes  copies to it
//   'R' address bytes             copies from it                              -> the bytes
//   'L' order, grid (3), block (3), shared, name length, name, arguments, each: length and bytes      -> 0
// A launch that is not right ends the program with a message on the standard error.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"
#include "runtime.h"

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
