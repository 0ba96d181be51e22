// Included before every C++ file of llama.cpp, for its use of AMX with the compilers of today's stable distributions.

// Clang 14 has other names for what tells of AMX, so that llama.cpp would be built without it.
#if defined(__AMXINT8__) && !defined(__AMX_INT8__)
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
#endif

// GCC 12's `_tile_loadconfig` tells the compiler that it reads 8 bytes. The stores to the other 56, which llama.cpp
// makes just before, are then removed as dead, and its first instruction on a tile is an illegal one.
#if defined(__AMX_TILE__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory")
#endif
