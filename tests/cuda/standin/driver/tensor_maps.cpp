// Tensor maps, which the host writes and copies of compute capability 9.0 read.
#include "../tma.h"

#include "driver.h"

using namespace driver;

/// What is wrong is an invalid value, also where NVIDIA's driver takes what the stand-in does not have.
EXPORT CUresult cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* dims,
                                       const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                                       int interleave, int swizzle, int l2_promotion, int oob_fill) {
    return in_context([&](Context&) -> CUresult {
        if (settings().version < 12000 || settings().major < 9) {
            explain("tensor maps are of drivers of CUDA 12, and of devices of compute capability 9.0");
            return NOT_SUPPORTED;
        }
        const standin::Tiled tiled{type, rank,       address, dims,         strides, box,
                                   element_strides, interleave, swizzle, l2_promotion, oob_fill};
        const auto wrong = standin::encode(tiled, map);
        if (wrong) explain("a tensor map with " + *wrong);
        return wrong ? INVALID_VALUE : SUCCESS;
    });
}
