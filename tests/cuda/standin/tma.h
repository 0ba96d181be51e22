// The PTX of tma.cuh, and tensor maps as the host writes them; see tma.cpp.
#pragma once

#include <optional>

#include "warpgroups.h"

struct TensorMap;

void prefetch_tensor_map(const TensorMap& map);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
void cp_async_bulk_tensor_2d(void* shared, const TensorMap& map, int column, int row, uint64_t* barrier);
void cp_async_mbarrier_arrive(uint64_t* barrier);

namespace standin {

/// What cuTensorMapEncodeTiled is given, by the names of its manual.
struct Tiled {
    int data_type;
    uint32_t rank;
    const void* global_address;
    const uint64_t *global_dim, *global_strides;
    const uint32_t *box_dim, *element_strides;
    int interleave, swizzle, l2_promotion, oob_fill;
};

constexpr size_t TENSOR_MAP_BYTES = 128;

/// Writes a tensor map; or says what is wrong with it, which for the driver is an invalid value.
std::optional<std::string> encode(const Tiled& tiled, void* map);

}  // namespace standin
