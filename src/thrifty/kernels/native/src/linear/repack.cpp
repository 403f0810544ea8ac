#include "linear/repack.hpp"

#include <algorithm>
#include <stdexcept>

#include "linear/layouts/ggml_one_level.hpp"
#include "pool.hpp"

namespace thrifty {

namespace {

// A lane's words of one plane: `bits` from bit `from` of the codes.
template <int BITS> void put_plane(const uint32_t* w, int from, uint8_t* to) {
  constexpr uint32_t mask = BITS == 8 ? ~0u : BITS == 4 ? kNibbles : BITS == 2 ? kCrumbs : kOnes;
  constexpr int kVectors = 8 / BITS;  // that share a word
  for (int i = 0; i < BITS; i++) {
    uint32_t x = 0;  // 4 bits: vectors i and i + 4; else neighbours
    for (int k = 0; k < kVectors; k++)
      x |= (w[BITS == 4 ? i + 4 * k : i * kVectors + k] >> from & mask) << (BITS % 8 * k);
    put(to + 64 * i, x);
  }
}
template <int BITS> void take_plane(uint32_t* w, int from, const uint8_t* source) {
  constexpr uint32_t mask = BITS == 8 ? ~0u : BITS == 4 ? kNibbles : BITS == 2 ? kCrumbs : kOnes;
  constexpr int kVectors = 8 / BITS;
  for (int i = 0; i < BITS; i++) {
    const uint32_t x = get32(source + 64 * i);
    for (int k = 0; k < kVectors; k++)
      w[BITS == 4 ? i + 4 * k : i * kVectors + k] |= (x >> (BITS % 8 * k) & mask) << from;
  }
}

// One lane of the blocks behind the sub-scales.
template <Layout L, int BLOCKS> void put_codes(const BlockBits& b, uint8_t* to) {
  constexpr Codes C = codes_of(L, false);
  for (int k = 0; k < BLOCKS; k++, to += C.bytes()) {
    put_plane<C.low>(b.codes[k], 0, to);
    if constexpr (C.high != 0) put_plane<C.high>(b.codes[k], C.low, to + 64 * C.low);
  }
}
template <Layout L, int BLOCKS> void take_codes(BlockBits& b, const uint8_t* from) {
  constexpr Codes C = codes_of(L, false);
  for (int k = 0; k < BLOCKS; k++, from += C.bytes()) {
    std::fill_n(b.codes[k], 8, 0u);
    take_plane<C.low>(b.codes[k], 0, from);
    if constexpr (C.high != 0) take_plane<C.high>(b.codes[k], C.low, from + 64 * C.low);
  }
}

// One lane of a record's sub-scales: whole words, and for iq4_xs sixteen halves.
template <Layout L> void put_sub_scales(const BlockBits& b, int lane, uint8_t* record) {
  for (int i = 0; i < sub_scales(L).bytes / 64; i++) put(record + 64 * i + 4 * lane, b.sub[i]);
  if constexpr (sub_scales(L).bytes % 64 != 0) put(record + 64 + 2 * lane, (uint16_t)b.sub[1]);
}
template <Layout L> void take_sub_scales(BlockBits& b, int lane, const uint8_t* record) {
  for (int i = 0; i < sub_scales(L).bytes / 64; i++) b.sub[i] = get32(record + 64 * i + 4 * lane);
  if constexpr (sub_scales(L).bytes % 64 != 0) b.sub[1] = get16(record + 64 + 2 * lane);
}

template <Layout L> constexpr size_t unit_bytes() {
  return two_levels(L) ? (size_t)record_bytes(L) : (size_t)codes_of(L, false).bytes();
}

template <Layout L, class Block> void repack_tile(const FileRows& from, const LinearArrays& to, int tile) {
  const int units = from.columns / (kBlockColumns * Block::kBlocks), rows = std::min(kLanes, from.rows - tile * kLanes);
  BlockBits b{};
  for (int u = 0; u < units; u++) {
    const size_t at = (size_t)tile * (size_t)units + (size_t)u;
    uint8_t* unit = to.codes + at * unit_bytes<L>();
    uint16_t *scales = to.scales + at * kLanes, *minimums = to.minimums ? to.minimums + at * kLanes : nullptr;
    if (rows < kLanes) {
      std::fill_n(unit, unit_bytes<L>(), (uint8_t)0), std::fill_n(scales, kLanes, (uint16_t)0);
      if (minimums) std::fill_n(minimums, kLanes, (uint16_t)0);
    }
    for (int lane = 0; lane < rows; lane++) {
      Block::read(from.data + (size_t)(tile * kLanes + lane) * from.stride + (size_t)u * Block::kBytes, b);
      put_sub_scales<L>(b, lane, unit);
      put_codes<L, Block::kBlocks>(b, unit + sub_scales(L).bytes + 4 * lane);
      scales[lane] = b.scale;
      if (minimums) minimums[lane] = b.minimum;
    }
  }
}

template <Layout L, class Block> void unpack_tile(const LinearArrays& from, const FileRows& to, int tile) {
  const int units = to.columns / (kBlockColumns * Block::kBlocks), rows = std::min(kLanes, to.rows - tile * kLanes);
  BlockBits b{};
  for (int u = 0; u < units; u++) {
    const size_t at = (size_t)tile * (size_t)units + (size_t)u;
    const uint8_t* unit = from.codes + at * unit_bytes<L>();
    for (int lane = 0; lane < rows; lane++) {
      take_sub_scales<L>(b, lane, unit);
      take_codes<L, Block::kBlocks>(b, unit + sub_scales(L).bytes + 4 * lane);
      b.scale = from.scales[at * kLanes + (size_t)lane],
      b.minimum = from.minimums ? from.minimums[at * kLanes + (size_t)lane] : (uint16_t)0;
      Block::write(b, to.data + (size_t)(tile * kLanes + lane) * to.stride + (size_t)u * Block::kBytes);
    }
  }
}

// bf16: pairs of columns of sixteen rows; a missing column is zero.
void repack_pairs(const FileRows& from, const LinearArrays& to, int tile) {
  const int pairs = (from.columns + 1) / 2, rows = std::min(kLanes, from.rows - tile * kLanes);
  uint8_t* words = to.codes + (size_t)tile * (size_t)pairs * kLanes * 4;
  if (rows < kLanes) std::fill_n(words, (size_t)pairs * kLanes * 4, (uint8_t)0);
  for (int lane = 0; lane < rows; lane++) {
    const uint8_t* row = from.data + (size_t)(tile * kLanes + lane) * from.stride;
    for (int p = 0; p < pairs; p++)
      put(words + (p * kLanes + lane) * 4,
          2 * p + 1 < from.columns ? get32(row + 4 * p) : (uint32_t)get16(row + 4 * p));
  }
}
void unpack_pairs(const LinearArrays& from, const FileRows& to, int tile) {
  const int pairs = (to.columns + 1) / 2, rows = std::min(kLanes, to.rows - tile * kLanes);
  const uint8_t* words = from.codes + (size_t)tile * (size_t)pairs * kLanes * 4;
  for (int lane = 0; lane < rows; lane++) {
    uint8_t* row = to.data + (size_t)(tile * kLanes + lane) * to.stride;
    for (int c = 0; c < to.columns; c++) put(row + 2 * c, get16(words + (c / 2 * kLanes + lane) * 4 + c % 2 * 2));
  }
}

// A type whose blocks are `Block`, held as layout L.
template <Layout L, class Block> constexpr FileType type_of(const char* name, bool minimums) {
  const int columns = Block::kBlocks * kBlockColumns;
  return {name, L, minimums, columns, Block::kBytes, repack_tile<L, Block>, unpack_tile<L, Block>};
}
constexpr FileType kTypes[] = {
    type_of<Layout::int4, Nibbles32<false, false>>("Q4_0", false),
    type_of<Layout::int4, Nibbles32<true, false>>("Q4_1", true),
    type_of<Layout::int5, Nibbles32<false, true>>("Q5_0", false),
    type_of<Layout::int5, Nibbles32<true, true>>("Q5_1", true),
    type_of<Layout::int8, Q8_0>("Q8_0", false),
    type_of<Layout::iq4_nl, Nibbles32<false, false>>("IQ4_NL", false),
    type_of<Layout::q2_k, Q2_K>("Q2_K", true),
    type_of<Layout::q3_k, Q3_K>("Q3_K", false),
    type_of<Layout::q4_k, Q45_K<false>>("Q4_K", true),
    type_of<Layout::q5_k, Q45_K<true>>("Q5_K", true),
    type_of<Layout::q6_k, Q6_K>("Q6_K", false),
    type_of<Layout::iq4_xs, IQ4_XS>("IQ4_XS", false),
    {"BF16", Layout::bf16, false, 1, 2, repack_pairs, unpack_pairs},
};

template <class F> void each_tile(int rows, F&& work) {
  const int tiles = (rows + kLanes - 1) / kLanes;
  Pool::shared().run(0, [&](Worker& w) {
    for (int tile = w.begin(tiles); tile < w.end(tiles); tile++) work(tile);
  });
}

}  // namespace

const FileType& file_type(const std::string& name) {
  std::string known;
  for (const FileType& type : kTypes) {
    if (name == type.name) return type;
    known += (known.empty() ? "" : ", ") + std::string(type.name);
  }
  throw std::invalid_argument("no linear layout holds the type '" + name + "'; known: " + known);
}

void repack(const FileType& type, const FileRows& from, const LinearArrays& to) {
  each_tile(from.rows, [&](int tile) { type.repack(from, to, tile); });
}

void unpack(const FileType& type, const LinearArrays& from, const FileRows& to) {
  each_tile(to.rows, [&](int tile) { type.unpack(from, to, tile); });
}

}  // namespace thrifty
