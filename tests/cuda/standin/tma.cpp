// What the PTX in tma.cuh does, from the PTX manual (sections as in ISA 9.2: 9.7.9.27, bulk copies of tensors, and 5.5,
// tensors), and the checks of cuTensorMapEncodeTiled, from the manual of the driver.
//
// A bulk copy writes shared memory at some time between its start and the end of the phase that waits for it: the box holds
// bytes of ones from the start on, and must still at the end, when it is written.
#include "tma.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "mbarriers.h"

namespace {

constexpr uint64_t MAGIC = 0x70616d20726f736eull;
constexpr unsigned PIECE = 16;

/// A tensor map as it is here, of a matrix. On a GPU it is opaque.
struct Map {
    uint64_t magic;
    const unsigned char* at;
    uint64_t columns, rows, stride;  // elements, rows, bytes
    uint32_t element, box_columns, box_rows, swizzle;

    uint32_t row_bytes() const { return box_columns * element; }
    uint32_t bytes() const { return row_bytes() * box_rows; }
};
static_assert(sizeof(Map) <= standin::TENSOR_MAP_BYTES, "as large as CUtensorMap");

const Map& read(const TensorMap& opaque) {
    auto map = reinterpret_cast<const Map*>(&opaque);
    if (uintptr_t(map) % 64) standin::fail("a tensor map at an address that is no multiple of 64");
    if (map->magic != MAGIC) standin::fail("a tensor map that cuTensorMapEncodeTiled has not written");
    return *map;
}

/// Bits from 4 on of an offset that change with the bits three places higher: none, one, two or three.
uint32_t swizzled(uint32_t offset, uint32_t bits) { return offset ^ (offset >> 3 & ((1u << bits) - 1) << 4); }

/// Every 16 bytes of a box: where they lie in it, and where they come from in global memory, of which so many bytes are
/// within the matrix.
template <class F>
void for_pieces(const Map& map, int64_t column, int64_t row, const F& piece) {
    const int64_t row_end = int64_t(map.columns * map.element);
    for (uint32_t r = 0; r < map.box_rows; r++) {
        const bool has_row = row + r >= 0 && row + r < int64_t(map.rows);
        for (uint32_t b = 0; b < map.row_bytes(); b += PIECE) {
            const int64_t at = column * map.element + b;
            const int64_t first = std::max<int64_t>(at, 0), end = std::min(at + PIECE, row_end);
            const size_t there = has_row && first < end ? size_t(end - first) : 0;
            const unsigned char* from = there ? map.at + (row + r) * int64_t(map.stride) + first : nullptr;
            piece(swizzled(r * map.row_bytes() + b, map.swizzle), size_t(first - at), from, there);
        }
    }
}

void copy(const Map& map, int column, int row, unsigned char* to) {
    {
        const standin::Unseen unseen;
        for_pieces(map, column, row, [&](uint32_t offset, size_t skipped, const unsigned char* from, size_t there) {
            unsigned char piece[PIECE], ones[PIECE];
            memset(ones, 0xff, PIECE);
            if (memcmp(to + offset, ones, PIECE)) {
                standin::fail("shared memory was written while a bulk copy was on its way there");
            }
            memset(piece, 0, PIECE);
            if (there) memcpy(piece + skipped, from, there);
            memcpy(to + offset, piece, PIECE);
        });
    }
    for (uint32_t at = 0; at < map.bytes(); at += PIECE) standin::writes_16(to + at);
}

/// Bytes of the elements of CUtensorMapDataType, those before the packed ones.
constexpr uint32_t SIZES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr int FIRST_FLOAT = 6;

bool is_outside(uint64_t value, uint64_t least, uint64_t most) { return value < least || value > most; }

}  // namespace

std::optional<std::string> standin::encode(const Tiled& t, void* to) {
    if (!to || !t.global_dim || !t.global_strides || !t.box_dim || !t.element_strides) return "a null pointer";
    if (uintptr_t(to) % 64) return "a tensor map that does not begin at a multiple of 64";
    if (is_outside(uint64_t(t.data_type), 0, std::size(SIZES) - 1)) return "no such type of elements";
    if (t.rank != 2) return "a rank that is not 2, which is all that there is here";
    const uint32_t element = SIZES[t.data_type];
    if (!t.global_address || uintptr_t(t.global_address) % 16) return "an address that is no multiple of 16";
    for (uint32_t i = 0; i < t.rank; i++) {
        if (is_outside(t.global_dim[i], 1, uint64_t(1) << 32)) return "a dimension that is not 1 to 2^32";
        if (is_outside(t.box_dim[i], 1, 256)) return "a box that is not 1 to 256 wide";
        if (is_outside(t.element_strides[i], 1, 8)) return "a stride of elements that is not 1 to 8";
        if (t.element_strides[i] != 1) return "a stride of elements other than 1, which is all that there is here";
    }
    const uint64_t stride = t.global_strides[0];
    if (stride % 16 || stride >= uint64_t(1) << 40) return "a stride that is no multiple of 16 below 2^40";
    if (stride < t.global_dim[0] * element) return "rows that overlap";
    if (t.interleave) return "an interleaving, for which the rank is at least 3";
    if (is_outside(uint64_t(t.swizzle), 0, 3)) return "a swizzle that is not here";
    const uint32_t inner = t.box_dim[0] * element, span = t.swizzle ? 16u << t.swizzle : UINT32_MAX;
    if (inner % 16) return "rows of a box that are no multiple of 16 bytes";
    if (inner > span) return "rows of a box that are longer than the swizzle";
    // shorter ones would leave holes, which nothing here has
    if (t.swizzle && inner != span) return "rows of a box that are shorter than the swizzle";
    if (is_outside(uint64_t(t.l2_promotion), 0, 3)) return "no such promotion";
    if (is_outside(uint64_t(t.oob_fill), 0, 1) || (t.oob_fill && t.data_type < FIRST_FLOAT)) return "no such fill";
    if (t.oob_fill) return "a fill with NaN, which is not here";
    memset(to, 0, TENSOR_MAP_BYTES);
    const Map map{MAGIC,  static_cast<const unsigned char*>(t.global_address), t.global_dim[0], t.global_dim[1], stride,
                  element, t.box_dim[0], t.box_dim[1], uint32_t(t.swizzle)};
    memcpy(to, &map, sizeof map);
    return std::nullopt;
}

void prefetch_tensor_map(const TensorMap& map) { read(map); }

void cp_async_bulk_tensor_2d(void* shared, const TensorMap& opaque, int column, int row, uint64_t* barrier) {
    const Map map = read(opaque);
    const uint32_t start = shared_address(shared);
    // eight rows of the swizzle, after which it repeats
    if (start % (128u << map.swizzle)) standin::fail("a box that does not begin where the swizzle does");
    auto to = static_cast<unsigned char*>(standin::shared_at(start, map.bytes()));
    standin::wrote_async(to, map.bytes());
    for_pieces(map, column, row, [&](uint32_t offset, size_t, const unsigned char* from, size_t there) {
        if (there == PIECE) standin::reads_16(from);
        standin::writes_16(to + offset);
    });
    {
        const standin::Unseen unseen;
        memset(to, 0xff, map.bytes());
    }
    standin::transact(barrier, map.bytes(), [=] { copy(map, column, row, to); });
}
