#include "memory.h"

#include <sys/mman.h>

#include <cstring>
#include <deque>
#include <map>
#include <string>

#include "runtime.h"

namespace standin {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t FREED = 1000;

struct Piece {
    size_t bytes;
    size_t padding;  // behind the bytes, to the next multiple of ALIGNMENT; keeps its ones
    unsigned char* mapped;
    size_t mapped_bytes;
    const void* owner;
};

// never destroyed: threads may use memory until the process is gone
std::map<const unsigned char*, Piece>& pieces() {
    static auto& all = *new std::map<const unsigned char*, Piece>;
    return all;
}
std::deque<Piece>& freed() {
    static auto& all = *new std::deque<Piece>;
    return all;
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

unsigned char* allocate(size_t bytes, const void* owner) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    const size_t padded = rounded(bytes, ALIGNMENT), inner = rounded(padded, PAGE), all = inner + 2 * PAGE;
    void* memory = mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto mapped = static_cast<unsigned char*>(memory);
    if (inner && mprotect(mapped + PAGE, inner, PROT_READ | PROT_WRITE) != 0) {
        munmap(mapped, all);
        return nullptr;
    }
    unsigned char* start = mapped + PAGE + inner - padded;
    memset(start, 0xff, padded);
    pieces()[start] = {bytes, padded - bytes, mapped, all, owner};
    return start;
}

bool release(void* memory, const void* owner) {
    auto found = pieces().find(static_cast<unsigned char*>(memory));
    if (found == pieces().end() || found->second.owner != owner) return false;
    const Piece piece = found->second;
    pieces().erase(found);
    // a new mapping in its place, which has no contents to keep
    mmap(piece.mapped, piece.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed().push_back(piece);
    if (freed().size() > FREED) {
        munmap(freed().front().mapped, freed().front().mapped_bytes);
        freed().pop_front();
    }
    return true;
}

bool is_within(const void* at, size_t bytes, const void* owner) {
    auto address = static_cast<const unsigned char*>(at);
    auto after = pieces().upper_bound(address);
    if (after == pieces().begin()) return false;
    const auto& [start, piece] = *std::prev(after);
    const size_t offset = size_t(address - start);
    return piece.owner == owner && offset <= piece.bytes && bytes <= piece.bytes - offset;
}

void check_padding() {
    for (const auto& [start, piece] : pieces()) {
        for (size_t i = 0; i < piece.padding; i++) {
            if (start[piece.bytes + i] != 0xff) {
                fail("a write past the end of memory of " + std::to_string(piece.bytes) + " bytes");
            }
        }
    }
}

}  // namespace standin
