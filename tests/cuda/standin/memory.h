// Memory of a device: every piece ends where an inaccessible page begins, and its bytes begin as ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace standin {

/// What addresses of memory are multiples of, and what its bytes are padded to. NVIDIA's driver gives multiples of 256: no
/// kernel may count on more than the 16 bytes that the widest access has.
constexpr size_t ALIGNMENT = 16;

/// New memory, or null. Up to ALIGNMENT - 1 bytes of ones pad it; an inaccessible page follows, and another comes before.
/// `owner` is whatever tells devices apart.
unsigned char* allocate(size_t bytes, const void* owner);

/// Frees what `allocate` gave; false if that is nothing of the kind. Its addresses stay inaccessible until a thousand others
/// have been freed.
bool release(void* memory, const void* owner);

/// Whether `bytes` from `at` on lie within one piece of memory.
bool is_within(const void* at, size_t bytes, const void* owner);

/// Fails if something has written the padding of any memory.
void check_padding();

}  // namespace standin
