// Sizes and small helpers that drivers and kernels share.
#pragma once
#include <cstddef>
#include <cstdint>

// For functions that all files share: never emitted as a symbol of their own.
#define THRIFTY_SHARED inline __attribute__((always_inline))

namespace thrifty {

constexpr int kLanes = 16;         // rows of one weight tile
constexpr int kBlockColumns = 32;  // columns that share one activation scale
constexpr int kSuperblock = 8;     // blocks that share a two-level scale
constexpr int kFetchBytes = 2048;  // how far ahead of a single row's products weights are asked for
constexpr int kWarmBytes = 6144;   // what is asked for of a tile that is next
constexpr int kPanel = 8;          // activation rows interleaved in one panel
constexpr int kPage = 64;          // tokens of one page of the KV cache
constexpr int kChunkPages = 4;     // pages of one attention chunk: the fixed unit of splitting and merging

THRIFTY_SHARED constexpr size_t align64(size_t n) { return (n + 63) / 64 * 64; }

}  // namespace thrifty
