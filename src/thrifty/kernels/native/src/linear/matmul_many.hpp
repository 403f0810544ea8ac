// Products of two neighbouring tiles of coded weights with many rows of activations: eight blocks at a time over all
// rows, so that codes come from the first-level cache and scales are decoded once.
#pragma once
#include "linear/matmul_codes.hpp"

namespace thrifty::THRIFTY_ISA {

constexpr int kTogether = 4, kPassRows = 64;  // rows in registers; rows of a pass
constexpr int kUnpackedGroups = 8;  // of kTogether rows, from which on codes are unpacked to bytes once for all of them

// Scales of eight blocks of two tiles as floats: of group or sub-scale i at [i][tile], and of the superblock.
struct ChunkScales {
  V scale[16][2], minimum[16][2], whole[2], minus[2];
};

// One level: the blocks from `first` on, in groups.
template <Layout L, bool MINIMUM>
THRIFTY_INLINE void read_scales(const Linear& w, int tile, int first, int blocks, ChunkScales& to) {
  const int per_group = w.group / kBlockColumns, groups = (w.blocks() + per_group - 1) / per_group;
  for (int b = 0; b < blocks; b++)
    for (int n = 0; n < 2; n++) {
      const size_t at = ((size_t)(tile + n) * (size_t)groups + (size_t)((first + b) / per_group)) * kLanes;
      to.scale[b][n] = load_half(w.scales + at);
      if constexpr (MINIMUM) to.minimum[b][n] = group_minimum<L>(w, at, to.scale[b][n]);
    }
}

// Two levels: superblock k.
template <Layout L>
THRIFTY_INLINE void read_sub_scales(const Linear& w, int tile, int k, const uint8_t* record, size_t step,
                                    ChunkScales& to) {
  constexpr SubScales S = sub_scales(L);
  constexpr int kCount = S.count();
  for (int n = 0; n < 2; n++) {
    const SubWords<L> subs(record + (size_t)n * step, [](Words v) { return v; });
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i++) {
      to.scale[i][n] = subs.scale(i);
      if constexpr (S.minimums) to.minimum[i][n] = subs.minimum(i);
    }
    const size_t at = ((size_t)(tile + n) * (size_t)w.superblocks() + (size_t)k) * kLanes;
    to.whole[n] = load_half(w.scales + at);
    if constexpr (S.minimums) to.minus[n] = sub(zero(), load_half(w.minimums + at));
  }
}

// acc += the chunk for kTogether rows: the same operations in the same order as in group_tiles and superblock_tiles.
template <Layout L, bool MINIMUM, Codes C>
THRIFTY_INLINE void add_chunk(const uint8_t* codes, size_t step, int blocks, const ChunkScales& c,
                              const ActivationBlock* x, V* acc) {
  constexpr int M = kTogether;
  if constexpr (!two_levels(L)) {
    for (int b = 0; b < blocks; b++, codes += C.bytes(), x += kPanel) {
      const CodeBlock<C, false> both[2] = {CodeBlock<C, false>(codes), CodeBlock<C, false>(codes + step)};
      add_group_block<MINIMUM, 2, M>(both, c.scale[b], c.minimum[b], x, acc);
    }
  } else {
    constexpr SubScales S = sub_scales(L);
    constexpr int kParts = kBlockColumns / S.columns;
    V s[2 * M];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; i++) s[i] = zero();
    for (int b = 0; b < kSuperblock; b++, codes += C.bytes()) {
      const CodeBlock<C, false> both[2] = {CodeBlock<C, false>(codes), CodeBlock<C, false>(codes + step)};
      add_block<S.columns, 2, M>(
          both, [&](int n, int part) __attribute__((always_inline)) { return c.scale[kParts * b + part][n]; },
          x + b * kPanel, s);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 2 * M; i++) acc[i] = fma(c.whole[i / M], s[i], acc[i]);
    if constexpr (S.minimums) {
#pragma GCC unroll 16
      for (int i = 0; i < 2 * M; i++) s[i] = zero();
      for (int b = 0; b < kSuperblock; b++)
        add_minimum<S.columns, 2, M>([&](int n, int part)
                                         __attribute__((always_inline)) { return c.minimum[kParts * b + part][n]; },
                                     x + b * kPanel, s);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * M; i++) acc[i] = fma(c.minus[i / M], s[i], acc[i]);
    }
  }
}

// Codes of `blocks` blocks of a tile as bytes.
template <Codes C> THRIFTY_INLINE void unpack_codes(const uint8_t* codes, int blocks, uint8_t* to) {
  for (int b = 0; b < blocks; b++, codes += C.bytes(), to += 512) {
    const CodeBlock<C, true> block(codes);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) store_bytes(to + 64 * v, code_vector(block, v));
  }
}

// sums[group of rows][tile * kTogether + row] of `groups` times kTogether rows, at most kPassRows.
template <Layout L, bool MINIMUM>
static void pass(const Linear& w, int tile, const ActivationBlock* x, int groups, V (*sums)[2 * kTogether]) {
  constexpr Codes C = codes_of(L, MINIMUM);
  const int blocks = w.blocks();
  const size_t step = tile_step<L, MINIMUM>(w), panel = (size_t)blocks * kPanel;
  const uint8_t* codes = w.codes + (size_t)tile * step;
  ChunkScales scales;
  alignas(64) uint8_t bytes[2][kSuperblock * 512];
  for (int g = 0; g < groups; g++)
    for (int i = 0; i < 2 * kTogether; i++) sums[g][i] = zero();
  for (int first = 0; first < blocks; first += kSuperblock) {
    const int count = blocks - first < kSuperblock ? blocks - first : kSuperblock;
    if constexpr (two_levels(L)) read_sub_scales<L>(w, tile, first / kSuperblock, codes, step, scales);
    else read_scales<L, MINIMUM>(w, tile, first, count, scales);
    const bool unpacked = (C.low != 8 || C.sparse) && groups >= kUnpackedGroups;
    if (unpacked)
      for (int n = 0; n < 2; n++) unpack_codes<C>(codes + sub_scales(L).bytes + (size_t)n * step, count, bytes[n]);
    for (int g = 0; g < groups; g++) {
      const ActivationBlock* from = x + (size_t)(g / 2) * panel + (size_t)first * kPanel + g % 2 * kTogether;
      V acc[2 * kTogether];
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kTogether; i++) acc[i] = sums[g][i];
      if (unpacked)
        add_chunk<L, MINIMUM, Codes{8, 0, false, C.offset}>(bytes[0], sizeof bytes[0], count, scales, from, acc);
      else add_chunk<L, MINIMUM, C>(codes + sub_scales(L).bytes, step, count, scales, from, acc);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * kTogether; i++) sums[g][i] = acc[i];
    }
    codes += two_levels(L) ? record_bytes(L) : kSuperblock * C.bytes();
  }
}

}  // namespace thrifty::THRIFTY_ISA
