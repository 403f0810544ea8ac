#include "linear/linear.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"
#include "linear/low_rank.hpp"
#include "linear/tensor_train.hpp"

namespace thrifty {

namespace {

constexpr size_t kPassBytes = 128 << 10;  // activations and results of a pass stay in a second-level cache of 1 MB
constexpr int kMostColumns = 1 << 20, kMostPlaneColumns = 1 << 16;  // planes of some rows lie on the stack

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

const char* name_of(Layout layout) { return traits(layout).name; }

Layout layout_of(const std::string& name) {
  std::string known;
  for (int i = 0; i < kLayouts; i++) {
    if (name == kLayoutTraits[i].name) return (Layout)i;
    known += (i ? ", " : "") + std::string(kLayoutTraits[i].name);
  }
  refuse("linear layout '" + name + "' is unknown; known: " + known);
}

void check_linear(Layout layout, int out, int in, int group) {
  if (out < 1 || in < 1 || out > (1 << 24) || in > kMostColumns)
    refuse("linear of shape " + std::to_string(out) + " x " + std::to_string(in) + " is out of range");
  if (traits(layout).codes.sparse && in % 4)
    refuse(std::string("a linear of layout ") + name_of(layout) + " keeps two of every four columns, so it has whole " +
           "fours of them, not " + std::to_string(in));
  if (traits(layout).family == Family::row_tables) return;
  if (traits(layout).family == Family::table && (group < kBlockColumns || group % kBlockColumns))
    refuse("a table's group must be a multiple of " + std::to_string(kBlockColumns) + ", not " + std::to_string(group));
  if (traits(layout).wide_groups) {
    if (group < kBlockColumns || group % kBlockColumns || group > kMostColumns)
      refuse(std::string("the group of a linear of layout ") + name_of(layout) + " must be a multiple of " +
             std::to_string(kBlockColumns) + ", not " + std::to_string(group));
    return;
  }
  if (!traits(layout).coded()) return;
  if (two_levels(layout)) {
    if (in % (kSuperblock * kBlockColumns))
      refuse(std::string("a linear of layout ") + name_of(layout) + " has columns in whole superblocks of 256, not " +
             std::to_string(in));
  } else if (group != 32 && group != 64 && group != 128) {
    refuse("group must be 32, 64 or 128, not " + std::to_string(group));
  }
}

void check_planes(Layout layout, int in, int group, int activation_bits) {
  if (in > kMostPlaneColumns)
    refuse("bit planes have at most " + std::to_string(kMostPlaneColumns) + " columns, not " + std::to_string(in));
  if (activation_bits < 1 || activation_bits > 8)
    refuse("activation_bits must be 1 to 8, not " + std::to_string(activation_bits));
  const int64_t columns = std::min(in, group), bits = traits(layout).codes.bits();
  if (columns * ((1 << bits) - 1) * ((1 << activation_bits) - 1) > INT32_MAX)
    refuse("sums of " + std::to_string(columns) + " products of " + std::to_string(bits) + " and " +
           std::to_string(activation_bits) + " bits do not fit 32 bits: use smaller groups");
}

Linear make_linear(Layout layout, uintptr_t codes, uintptr_t scales, uintptr_t minimums, uintptr_t bias, int out,
                   int in, int group) {
  check_linear(layout, out, in, group);
  Linear w;
  w.layout = layout, w.out = out, w.in = in, w.group = group;
  w.codes = (const uint8_t*)codes, w.bias = (const float*)bias;
  const bool coded = traits(layout).coded();
  if (coded) w.scales = (const uint16_t*)scales, w.minimums = (const uint16_t*)minimums;
  if (!codes || (coded && !scales)) refuse("linear needs codes and, but for bf16, f16 and f32, scales");
  const bool always = traits(layout).minimums == Minimums::always, never = traits(layout).minimums == Minimums::never;
  if ((always && !minimums) || (never && minimums))
    refuse(std::string("a linear of layout ") + name_of(layout) + (always ? " needs" : " has no") + " minimums");
  return w;
}

size_t tile_bytes(const Linear& w) {
  const LayoutTraits& own = traits(w.layout);
  if (own.family == Family::plain) return (size_t)w.in * kLanes * (size_t)own.number;
  if (own.family == Family::pairs && !own.codes.sparse) return ((size_t)w.in + 1) / 2 * kLanes * sizeof(uint32_t);
  if (own.family == Family::superblocks) return (size_t)w.superblocks() * (size_t)own.record_bytes();
  if (own.family == Family::vectors) return (size_t)w.blocks() * (size_t)vector_bytes(w.vectors, own.length);
  return (size_t)w.blocks() * (size_t)own.codes.bytes();
}

Linear reader_of(Reads kind, int columns, float threshold) {
  constexpr Layout kLayoutOf[kReads] = {Layout::int8, Layout::bf16, Layout::f32, Layout::int8_token};
  Linear w;
  w.layout = kLayoutOf[(int)kind], w.in = columns, w.threshold = threshold;
  return w;
}

namespace {

// Activations of a row are `count` items of `bytes`, in panels of kPanel interleaved rows (plain rows: each by itself).
struct Items {
  explicit Items(const Linear& w) {
    switch (w.reads()) {
      case Reads::plain:
        bytes = (size_t)w.in * sizeof(float), count = 1;
        break;
      case Reads::pairs:
        bytes = sizeof(uint32_t), count = ((size_t)w.in + 1) / 2;
        break;
      case Reads::tokens:
        bytes = sizeof(ActivationBlock), count = (size_t)w.token_items();
        break;
      default:
        bytes = sizeof(ActivationBlock), count = (size_t)w.blocks();
    }
  }
  size_t start(int row) const { return ((size_t)(row / kPanel) * count * kPanel + (size_t)(row % kPanel)) * bytes; }
  size_t bytes, count;
};

// Whether no outlier of the row follows this item.
bool ends(const ActivationOutliers* item) {
  return std::any_of(std::begin(item->of), std::end(item->of), [](const auto& own) { return own.column < 0; });
}

}  // namespace

size_t panel_bytes(const Linear& w, int rows) {
  const Items items(w);
  return ((size_t)rows + kPanel - 1) / kPanel * kPanel * items.count * items.bytes;
}

void place_row(const Linear& w, const float* x, int row, uint8_t* panel) {
  uint8_t* to = panel + Items(w).start(row);
  if (w.reads() == Reads::plain) std::memcpy(to, x, (size_t)w.in * sizeof(float));
  else if (w.reads() == Reads::pairs) kernels().to_pairs(x, w.in, (uint32_t*)to);
  else if (w.reads() == Reads::tokens) kernels().quantise_token(x, w.in, w.threshold, (ActivationBlock*)to);
  else kernels().quantise(x, w.in, (ActivationBlock*)to);
}

void place_block(const Linear& w, const float* x, int columns, int row, int block, uint8_t* panel) {
  kernels().quantise(x, columns, (ActivationBlock*)(panel + Items(w).start(row)) + (size_t)block * kPanel);
}

void copy_row(const Linear& w, const uint8_t* panel, int from, uint8_t* target, int to) {
  const Items items(w);
  panel += items.start(from), target += items.start(to);
  for (size_t i = 0; i < items.count; i++) {
    const uint8_t* item = panel + i * kPanel * items.bytes;
    std::memcpy(target + i * kPanel * items.bytes, item, items.bytes);
    if (w.reads() == Reads::tokens && i >= (size_t)w.blocks() && ends((const ActivationOutliers*)item)) return;
  }
}

const uint8_t* row_in_panel(const Linear& w, const uint8_t* panel, int row) { return panel + Items(w).start(row); }

void fetch_tile(const Linear& w, int tile) {
  if (w.train) return;  // its sites are small
  const uint8_t* from = w.codes + (size_t)tile * tile_bytes(w);
  for (size_t i = 0; i < kWarmBytes; i += 64) __builtin_prefetch(from + i);
}

float dot(const float* a, const float* b, int count) {
  float sums[kLanes] = {}, sum = 0.0f;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; j++) sums[j] += a[i + j] * b[i + j];
  for (; i < count; i++) sum += a[i] * b[i];
  for (float s : sums) sum += s;
  return sum;
}

int rows_per_pass(const Linear& w) {
  // Room for outliers is hardly ever touched.
  const size_t per_panel = panel_bytes(w.reads() == Reads::tokens ? reader_of(Reads::codes, w.in) : w, kPanel);
  return kPanel *
         (int)std::clamp<size_t>(kPassBytes / per_panel, 8, 64);  // at least what shares the unpacking of a tile
}

namespace {

// Rows of a matmul's activations as linears read them, one memory a kind.
struct RowPanels {
  RowPanels(const Linear& w, int rows) {
    add(w, rows);
    if (w.low) add(w.low->down, rows);
  }
  void add(const Linear& w, int rows) {
    std::vector<uint8_t>& memory = memories[(size_t)w.reads()];
    memory.resize(std::max(memory.size(), panel_bytes(w, rows) + 64));
  }
  uint8_t* of(const Linear& w) {
    uint8_t* start = memories[(size_t)w.reads()].data();
    return start + (64 - (uintptr_t)start % 64) % 64;
  }
  std::vector<uint8_t> memories[kReads];
};

}  // namespace

void matmul(const Linear& w, const float* x, float* y, int m) {
  RowPanels panels(w, m);
  Lowered lowered;
  lowered.grow(w, 1, m);
  Contracted contracted;
  contracted.grow(w, 1, m);
  Claims claims;
  claims.reset(Pool::shared().threads());
  Pool::shared().run(0, [&](Worker& worker) {
    for (int i = worker.begin(m); i < worker.end(m); i++) {
      const float* row = x + (size_t)i * (size_t)w.in;
      place_row(w, row, i, panels.of(w));
      if (w.low && w.low->down.reads() != w.reads()) place_row(w.low->down, row, i, panels.of(w.low->down));
    }
    worker.barrier();
    lowered.lower({&w}, m, worker, [&](const Linear& down) { return panels.of(down); });
    contracted.contract({&w}, m, worker, [&](const Linear& train) { return panels.of(train); });
    TileTasks(w, m, w.tiles(), worker.count).each(worker, claims, [&](int row0, int row1, int tile0, int tile1) {
      float* to = y + (size_t)row0 * (size_t)w.out + (size_t)tile0 * kLanes;
      contracted.multiply(w, 0, tile0, tile1, panels.of(w), row0, row1, to, (size_t)w.out, false);
      lowered.raise(w, 0, tile0, tile1, row0, row1, to, (size_t)w.out);
    });
  });
}

}  // namespace thrifty
