// What the newest rows attend to among chosen slots: the greatest probability of each. Included once per instruction
// set.
//
// One pass over the keys: scores of judged slots are kept, and of all that a row sees the softmax's maximum and sum,
// lane by lane, page after page in view order. So a row's probabilities depend on nothing but its own history, and the
// greatest of all rows not on their order.
#pragma once
#include "attention/attention.hpp"

namespace thrifty::THRIFTY_ISA {

// The part of a range of slots that lies in a page, in slots of the page.
struct Part {
  int low, high;
  THRIFTY_SHARED static Part of(const Block& b, int first, int last) {
    const int low = first - b.first_slot, high = last - b.first_slot;
    return {low > 0 ? low : 0, high < b.slots ? high : b.slots};
  }
  THRIFTY_SHARED bool any() const { return low < high; }
  THRIFTY_SHARED bool all() const { return low == 0 && high == kPage; }
};

// A row's softmax so far, lane by lane: maxima, and sums relative to them.
THRIFTY_INLINE void add_to_softmax(const V* x, float* state) {
  const V before = load(state), top = max(before, max(max(x[0], x[1]), max(x[2], x[3])));
  V p[4];
  for (int j = 0; j < 4; j++) p[j] = power_of_two(sub(x[j], top));
  store(state, top);
  store(state + kLanes,
        add(mul(load(state + kLanes), power_of_two(sub(before, top))), add(add(p[0], p[1]), add(p[2], p[3]))));
}

// One page: the scores of rows first.. of the tile, as block_group left them. judged: [rows of the tile][stride], from
// slot low on.
static void witness_rows(const AttendArgs& a, const WitnessArgs& w, int row0, const Block& b, Tile& t, int first,
                         int count, float* judged, size_t stride) {
  const Part sinks = Part::of(b, 0, w.sinks), middle = Part::of(b, w.low, w.high);
  for (int r = 0; r < count; r++) {
    float* s = t.scores + r * kPage;
    const int row = row0 + (first + r) / a.group;
    const Part own = Part::of(b, a.slots - w.forced, a.slots - (a.n - 1 - row));
    V x[4];
    for (int j = 0; j < 4; j++) x[j] = load(s + j * kLanes);
    if (a.softcap > 0.0f || b.span->bias) {
      adjust_scores(s, a, b, row, 0, kPage, x);
      for (int j = 0; j < 4; j++) store(s + j * kLanes, x[j]);
    }
    float* to = judged + (size_t)(first + r) * stride + (b.first_slot - w.low);
    if (middle.all())
      for (int j = 0; j < 4; j++) store(to + j * kLanes, x[j]);
    else  // whole vectors: what is too much is overwritten by the next page, or lies in the pad
      for (int i = middle.low; i < middle.high; i += kLanes) store(to + i, load(s + i));
    if (const Part parts[] = {sinks, middle, own}; !middle.all() && !own.all())
      for (int j = 0, at = 0; j < 4; j++, at += kLanes) {
        V y = set1(kLowest);
        for (const Part& part : parts)
          if (part.any()) y = keep(x[j], part.low - at, part.high - at, y);
        x[j] = y;
      }
    add_to_softmax(x, t.chunk + (size_t)(first + r) * t.dim);
  }
}

// The lanes' maxima and sums as those of the row.
THRIFTY_INLINE void finish_softmax(const float* state, float& maximum, float& sum) {
  maximum = reduce_max(load(state));
  sum = reduce_add(mul(load(state + kLanes), power_of_two(sub(load(state), set1(maximum)))));
}

// found[i] = the greatest of rows and query heads: the logarithm first, so that each score costs no exponential.
static void greatest(const WitnessArgs& w, const Tile& t, const float* judged, size_t stride, float* found) {
  const int slots = w.high - w.low;
  for (int i = 0; i < slots; i += kLanes) store(found + i, set1(kLowest));
  for (int r = 0; r < t.rows; r++) {
    const V top = set1(t.chunk_max[r]), whole = set1(__builtin_log2f(t.chunk_sum[r]));
    for (int i = 0; i < slots; i += kLanes)
      store(found + i, max(load(found + i), sub(sub(load(judged + r * stride + i), top), whole)));
  }
  for (int i = 0; i < slots; i += kLanes) store(found + i, power_of_two(load(found + i)));
}

// found[i] = the greatest of rows, each the mean over its query heads.
static void greatest_mean(const WitnessArgs& w, const Tile& t, int group, const float* judged, size_t stride,
                          float* found) {
  const int slots = w.high - w.low;
  for (int i = 0; i < slots; i += kLanes) store(found + i, zero());
  for (int r = 0; r < t.rows; r += group)
    for (int i = 0; i < slots; i += kLanes) {
      V sum = zero();
      for (int g = r; g < r + group; g++)
        sum = fma(power_of_two(sub(load(judged + g * stride + i), set1(t.chunk_max[g]))), set1(1.0f / t.chunk_sum[g]),
                  sum);
      store(found + i, max(load(found + i), mul(sum, set1(1.0f / (float)group))));
    }
}

// Rows row0..row1-1: found[i] = the greatest probability that they give slot low + i. judged: [rows * group][stride],
// found: [stride], with stride >= high - low + kWitnessPad.
static void attend_witness(const AttendArgs& a, const WitnessArgs& w, int row0, int row1, float* judged, size_t stride,
                           float* found, uint8_t* scratch) {
  Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
  t.keys_only = true;
  scale_queries(a, row0, t);
  for (int r = 0; r < t.rows; r++)
    store(t.chunk + (size_t)r * t.dim, set1(kLowest)), store(t.chunk + (size_t)r * t.dim + kLanes, zero());
  const int newest = a.slots - (a.n - row1);
  each_block(a, 0, page_count(a), [&](Block& b, int) __attribute__((always_inline)) {
    if (!Part::of(b, 0, w.sinks).any() && !Part::of(b, w.low, w.high).any() &&
        !Part::of(b, a.slots - w.forced, newest).any())
      return;
    prepare_block(b, t);
    for (int first = 0; first < t.rows; first += kScoreRows) {
      const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
      block_group<Scored>(a, b, t, first, count);
      witness_rows(a, w, row0, b, t, first, count, judged, stride);
    }
  });
  for (int r = 0; r < t.rows; r++) finish_softmax(t.chunk + (size_t)r * t.dim, t.chunk_max[r], t.chunk_sum[r]);
  if (w.mean) greatest_mean(w, t, a.group, judged, stride, found);
  else greatest(w, t, judged, stride, found);
}

}  // namespace thrifty::THRIFTY_ISA
