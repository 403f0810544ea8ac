// Softmax probabilities of some queries over plain keys: what cache policies score slots by. Included once per
// instruction set.
//
// Scores go where the probabilities will be, 64 slots at a time, all in fp32; then each row's softmax, in the order of
// the slots. So a row's bits depend on nothing but its query, the keys and how many of them it sees.
#pragma once
#include "attention/attention_block.hpp"

namespace thrifty::THRIFTY_ISA {

static_assert(kScoreRows <= kMapScratchRows);

// [rows][dim] -> groups of kScoreRows rows, [group][dim][rows of the group], times `factor`.
static void map_queries(const float* q, int rows, int dim, float factor, float* to) {
  for (int first = 0; first < rows; first += kScoreRows) {
    const int count = rows - first < kScoreRows ? rows - first : kScoreRows;
    for (int c = 0; c < dim; c++)
      for (int r = 0; r < count; r++) *to++ = q[(size_t)(first + r) * dim + c] * factor;
  }
}

// Keys of up to 64 slots, [slots][dim] -> [dim][64]; what is missing is zero.
static void turn_keys(const float* keys, int count, int dim, float* to) {
  constexpr int kChannels = 64;  // as many lines as the first-level cache holds
  for (int c0 = 0; c0 < dim; c0 += kChannels) {
    const int c1 = c0 + kChannels < dim ? c0 + kChannels : dim;
    for (int s = 0; s < kPage; s++)
      for (int c = c0; c < c1; c++) to[(size_t)c * kPage + s] = s < count ? keys[(size_t)s * dim + c] : 0.0f;
  }
}

template <int R>
static void map_group(const MapArgs& a, int first, int slot, int count, const float* keys, float* scores) {
  score<R>(a.q + (size_t)first * a.dim, keys, a.dim, scores, nullptr);
  const V unit = set1(a.softcap * kLog2e);
  for (int j = 0; j < kPage && j < count; j += kLanes) {
    const V bias = a.bias ? load_some(a.bias + slot + j, count - j) : zero();
    for (int r = 0; r < R; r++) {
      V x = load(scores + r * kPage + j);
      if (a.softcap > 0.0f) x = mul(unit, hyperbolic_tangent(div(x, unit)));
      if (a.bias) x = fma(bias, set1(kLog2e), x);
      store_some(a.out + (size_t)(first + r) * a.slots + slot + j, x, count - j);
    }
  }
}

// Scores of all rows that see any of the 64 slots from `slot` on, in units of log2. scratch: (dim + kMapScratchRows) *
// 64 floats.
static void map_scores(const MapArgs& a, int slot, float* scratch) {
  const int count = a.slots - slot < kPage ? a.slots - slot : kPage;
  float *const keys = scratch, *const scores = scratch + (size_t)a.dim * kPage;
  turn_keys(a.keys + (size_t)slot * a.dim, count, a.dim, keys);
  for (int first = 0; first < a.rows; first += kScoreRows) {
    const int rows = a.rows - first < kScoreRows ? a.rows - first : kScoreRows;
    bool seen = false;
    for (int r = 0; r < rows; r++) seen = seen || a.sees[first + r] > slot;
    if (!seen) continue;
    switch (rows) {
#define THRIFTY_GROUP(R)                                                              \
  case R:                                                                             \
    if constexpr (kScoreRows >= R) map_group<R>(a, first, slot, count, keys, scores); \
    break;
      THRIFTY_GROUP(1) THRIFTY_GROUP(2) THRIFTY_GROUP(3) THRIFTY_GROUP(4) THRIFTY_GROUP(5) THRIFTY_GROUP(6)
#undef THRIFTY_GROUP
    }
  }
}

// A row's scores to probabilities; 0 behind what it sees.
static void map_softmax(const MapArgs& a, int row) {
  float* const x = a.out + (size_t)row * a.slots;
  const int sees = (int)a.sees[row];
  const V lowest = set1(-__builtin_inff());
  const auto some = [&](int i) __attribute__((always_inline)) {
    return i + kLanes <= sees ? load(x + i) : keep(load_some(x + i, sees - i), 0, sees - i, lowest);
  };
  V top = lowest, sum = zero();
  for (int i = 0; i < sees; i += kLanes) top = max(top, some(i));
  top = set1(reduce_max(top));
  for (int i = 0; i < sees; i += kLanes) {
    const V p = power_of_two(sub(some(i), top));
    sum = add(sum, p);
    store_some(x + i, p, sees - i);
  }
  const V inverse = set1(1.0f / reduce_add(sum));
  for (int i = 0; i < sees; i += kLanes) store_some(x + i, mul(load_some(x + i, sees - i), inverse), sees - i);
  for (int i = sees; i < a.slots; i++) x[i] = 0.0f;
}

}  // namespace thrifty::THRIFTY_ISA
