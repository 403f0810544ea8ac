// Plain data that crosses from the drivers (ordinary C++) to the kernels (compiled once per instruction set).
// Only POD and raw pointers: an instruction-set file must not emit shared inline functions of the standard library,
// or the linker could pick an AVX-512 copy of them for a machine that has none.
#pragma once
#include <cstddef>
#include <cstdint>

#include "attention/formats.hpp"
#include "common.hpp"
#include "linear/layouts.hpp"
#include "linear/lookups.hpp"

namespace thrifty {

// 32 quantised activations of one row. Panels are stored [row / 8][block][row % 8].
struct ActivationBlock {
  int8_t q[kBlockColumns];
  float scale;           // max|x| / 127
  float scaled_sum;      // scale * sum(q)
  int32_t minus8;        // -8 * sum(q): the offset of symmetric 4-bit codes; times 16 it is that of 8-bit codes
  int32_t minus8_first;  // -8 * sum of the first 16 of q
};
static_assert(sizeof(ActivationBlock) == 48);

// Features of a row beyond a threshold, behind its blocks: panels go on with [row / 8][item][row % 8]. Columns ascend;
// the one behind the last is -1.
constexpr int kOutliers = 6;
struct ActivationOutliers {
  struct {
    int32_t column;
    float value;
  } of[kOutliers];
};
static_assert(sizeof(ActivationOutliers) == sizeof(ActivationBlock));
// -offset * sum(q) from minus8; offset: 0 or a power of two.
THRIFTY_SHARED constexpr int less_offset(int offset, int minus8) {
  return offset < 8 ? (minus8 >> 3) * offset : minus8 * (offset / 8);
}

struct LowRank;
struct TensorTrain;

struct Linear {
  Layout layout = Layout::int4;
  const uint8_t* codes = nullptr;      // two levels: records
  const uint16_t* scales = nullptr;    // fp16, of groups or superblocks
  const uint16_t* minimums = nullptr;  // absent: null
  const uint8_t* zeros = nullptr;      // zero points of int4 or int8 in place of minimums; absent: null
  const float* table = nullptr;        // of table4 and table8: 16 or 256 values, and a scale of fp32 a group
  const float* table_scales = nullptr;
  const int8_t* row_tables = nullptr;  // of row tables: 2^bits values a row
  Vectors vectors{};                   // of vectors
  Overlay overlay{};
  int activation_bits = 0;             // of bit planes: what rows of activations are rounded to
  const float* bias = nullptr;         // absent: null
  const LowRank* low = nullptr;        // what is added to the product; absent: null
  const TensorTrain* train = nullptr;  // of layout f32 without codes: what the product is made of; absent: null
  int out = 0, in = 0, group = 0;
  float threshold = 0;  // of layouts with outliers: features of at least this size stay apart; 0: none do
  THRIFTY_SHARED bool has_minimum() const { return minimums || zeros; }
  // Of group and lane `at`: the value of code 0 (of 128 for 8 bits), exact in fp32.
  THRIFTY_SHARED float zero_value(size_t at, float scale) const {
    return scale * (float)(codes_of(layout, true).offset - zeros[at]);
  }
  THRIFTY_SHARED Reads reads() const { return thrifty::reads(layout); }
  THRIFTY_SHARED int tiles() const { return (out + kLanes - 1) / kLanes; }
  THRIFTY_SHARED int blocks() const { return (in + kBlockColumns - 1) / kBlockColumns; }
  THRIFTY_SHARED int superblocks() const { return blocks() / kSuperblock; }
  // Of a row of activations with one scale: its blocks, and room for as many outliers as it has features.
  THRIFTY_SHARED int token_items() const { return blocks() + (threshold > 0 ? in / kOutliers + 1 : 0); }
};

// U (V x), a product of two linears without a bias: down is V [rank, in], up is U [out, rank].
struct LowRank {
  Linear down, up;
};

// W as a chain of tensors (linear/tensor_train.hpp). Site k takes `in` columns times the bond before it, and gives
// `out` rows times the bond behind it; the first and the last bond are 1.
constexpr int kMostSites = 4;
struct TensorTrain {
  struct Site {
    Linear weights;  // [out * bond, in * bond before]; without a bias
    int out, in, bond;
  };
  Site sites[kMostSites];
  int count = 0;
};

struct Span {
  uint8_t* base = nullptr;
  const float* bias = nullptr;  // added to the score of each slot; absent: null
  int tokens = 0, capacity = 0;
  Format format = Format::bf16;
  bool sealed = false;
  int first_slot = 0;  // slots of the spans before this one
  int first_page = 0;  // pages of the spans before this one (each span starts a page)
  THRIFTY_SHARED int pages() const { return (tokens + kPage - 1) / kPage; }
};

// Byte offsets of the four arrays of a slab (see formats/kv.py; the layouts are the same).
struct SlabLayout {
  size_t key_params = 0, values = 0, value_params = 0, bytes = 0;
};
// Head dimensions that the kernels take. Codes and scratch pad them to a multiple of 64.
constexpr const char* kHeadDims = "an even number from 16 to 256, or a multiple of 64 up to 1024";
THRIFTY_SHARED constexpr bool takes_head_dim(int dim) {
  return (dim >= 16 && dim <= 256 && dim % 2 == 0) || (dim > 256 && dim <= 1024 && dim % 64 == 0);
}
THRIFTY_SHARED constexpr SlabLayout slab_layout(Format format, size_t capacity, size_t dim) {
  SlabLayout s;
  if (int bits = format_bits(format); bits) {
    dim = align64(dim);
    s.key_params = align64(capacity / kPage * dim * 8 * bits);
    const size_t groups = (size_t)format_groups(format);
    s.values = align64(s.key_params + capacity / kPage * 2 * groups * dim * 2);
    s.value_params = align64(s.values + capacity * (dim / 64) * 8 * bits);
    s.bytes = align64(s.value_params + capacity * 2 * (dim / 64 * groups) * 2);
  } else {
    const size_t element = number_bytes(format);
    s.key_params = s.values = align64(capacity * dim * element);
    s.value_params = s.bytes = align64(s.values + capacity * dim * element);
  }
  return s;
}

// Asks for all lines of a page: a decode step reads each page once, so only asking early hides the memory's latency.
THRIFTY_SHARED void fetch_page(const Span& s, int page, int dim) {
  const SlabLayout at = slab_layout(s.format, (size_t)s.capacity, (size_t)dim);
  const size_t stored = align64((size_t)dim);  // of codes
  const size_t numbers = at.key_params == at.values ? (size_t)dim * kPage * number_bytes(s.format)
                                                    : stored * 8 * (size_t)format_bits(s.format);
  for (size_t i = 0; i < numbers; i += 64) {
    __builtin_prefetch(s.base + (size_t)page * numbers + i);
    __builtin_prefetch(s.base + at.values + (size_t)page * numbers + i);
  }
  if (at.key_params == at.values) return;
  const size_t params = stored * 4 * (size_t)format_groups(s.format);
  for (size_t i = 0; i < params; i += 64) {
    __builtin_prefetch(s.base + at.key_params + (size_t)page * params + i);
    __builtin_prefetch(s.base + at.value_params + (size_t)page * params + i);
  }
}

// One sequence, one layer, one KV head: what a kernel needs to attend.
struct AttendArgs {
  const Span* spans;
  int span_count;
  const Span* after;  // what is likely to be read when this is done; may be null
  int base_pages;     // pages dropped from the front of the view since its start
  int slots;
  const float* q;  // [n, heads, dim]
  float* out;      // [n, heads, dim]
  int n, heads, dim, group, kv_head;
  float scale, softcap;  // softcap 0: none
  int window;            // 0: none
  float* partials;       // [n, heads, chunk_stride, align64(dim) + 16]: maximum, sum, 14 unused, accumulated values
  int first_chunk, chunks, chunk_stride;
  float* finals;      // [n, heads, 2]: maximum and sum of the whole row; may be null
  float* accumulate;  // [heads, accumulate_stride]: probabilities summed over rows; may be null
  int accumulate_stride;
  size_t accumulate_row;  // floats from one row's [heads, accumulate_stride] to the next's; 0: all rows in one
  const uint64_t* tree;   // [n]: bit j: the row sees row j of these n; all older slots too. Null: causal
  const int32_t* ahead;   // [n]: rows behind it that the row sees as well. Null: none
  const uint64_t* seen;   // [n, group, seen_blocks]: bit i: the row's query head sees slot i of the block. Null: all
  int seen_blocks;        // of the view
  bool seen_in_part;      // whether a block may be seen in part
};
constexpr int kPartialHeader = 16;

// Numbers of one bound of a page of keys (attention/page_bounds.hpp).
THRIFTY_SHARED constexpr int bounds_width(int dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

// What the rows of AttendArgs bear witness to, for the same KV head: they see slots 0..sinks-1, low..high-1 and the
// newest `forced`, up to their own; low..high-1 are judged.
struct WitnessArgs {
  int forced, sinks, low, high;
  bool mean;  // over the KV head's query heads; else the greatest of them
};
constexpr int kWitnessPad = kLanes;  // floats that kept scores need behind the last

// Probabilities of rows over plain keys: see attention_map.hpp.
struct MapArgs {
  const float* q;       // as map_queries left them
  const float* keys;    // [slots][dim]
  const float* bias;    // [slots]; may be null
  const int64_t* sees;  // [rows]
  float* out;           // [rows][slots]
  int rows, slots, dim;
  float softcap;  // 0: none
};
constexpr int kMapScratchRows = 6;  // rows that a kernel scores at once, at most

struct Kernels {
  const char* name;
  // Activations of one row -> panel blocks (destination stride kPanel). Columns beyond `columns` are zero.
  void (*quantise)(const float* x, int columns, ActivationBlock* destination);
  // The same with one scale for the whole row; threshold above 0: what is not below it is left out of the blocks, and
  // follows them as outliers.
  void (*quantise_token)(const float* x, int columns, float threshold, ActivationBlock* destination);
  void (*to_pairs)(const float* x, int columns, uint32_t* destination);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int columns, float* out);
  // y[(i - row0) * stride + (tile - tile0) * 16 + lane], rows row0..row1 (row0 % 8 == 0) of the panels at
  // `activations`; for plain weights these are plain rows.
  void (*tiles)(const Linear&, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                size_t stride, bool add);
  void (*gate)(const float* gate, const float* up, float* out, int count, int activation);
  void (*add)(float* x, const float* y, int count);
  void (*cap)(float* x, float limit, int count);
  void (*rotate)(float* x, const float* cosine, const float* sine, int half);
  int (*arg_max)(const float* x, int count);
  size_t (*attend_scratch)(int dim, int group);
  int (*attend_rows)(int group);  // rows of a prefill tile
  void (*attend_tile)(const AttendArgs&, int row0, int row1, uint8_t* scratch);
  void (*attend_chunk)(const AttendArgs&, int chunk, uint8_t* scratch);
  void (*attend_merge)(const AttendArgs&, int row, int head);
  void (*attend_accumulate)(const AttendArgs&, int page, uint8_t* scratch);
  void (*attend_witness)(const AttendArgs&, const WitnessArgs&, int row0, int row1, float* judged, size_t stride,
                         float* found, uint8_t* scratch);
  bool (*page_bounds)(const Span&, int block, int low, int high, int dim, uint16_t* to, uint8_t* scratch);
  void (*split_query)(const float* q, int dim, float* to);
  void (*page_scores)(const float* query, const uint16_t* bounds, int pages, int dim, float* to);
  void (*map_queries)(const float* q, int rows, int dim, float factor, float* to);
  void (*map_scores)(const MapArgs&, int slot, float* scratch);
  void (*map_softmax)(const MapArgs&, int row);
  void (*read_page)(const Span&, int page, int low, int high, int dim, float* keys, float* values, uint8_t* scratch);
  bool (*compress_page)(const Span& from, int page, int slots, int dim, const Span& to,
                        int to_page);  // false: not representable
  uint64_t (*read)(const uint8_t* data, size_t bytes);
};

const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
bool has_vector_popcount();  // bits of words counted by one AVX-512 instruction

}  // namespace thrifty
