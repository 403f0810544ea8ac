// What the newest rows attend to among chosen slots: the greatest probability of each. Included once per instruction set.
//
// Fixed order, as in attention.hpp: a row's scores lie one after the other, as it sees the slots, and its softmax is taken
// over them in that order; the greatest of all rows does not depend on the order at all.
#pragma once
#include "attention.hpp"

namespace thrifty::THRIFTY_ISA {

// A page's scores of one row, to their places among those of what the row sees. Writes whole vectors, so too much behind
// each of the three ranges: what follows overwrites it.
THRIFTY_INLINE void place_scores(const WitnessArgs& w, const Block& b, const float* s, float* row) {
  const int own = w.slots - w.forced;
  const int first[3] = {0, w.low, own}, last[3] = {w.sinks, w.high, w.slots}, place[3] = {0, w.sinks, w.sinks + w.high - w.low};
  for (int i = 0; i < 3; i++) {
    const int from = first[i] > b.first_slot ? first[i] : b.first_slot, end = b.first_slot + b.slots, to = last[i] < end ? last[i] : end;
    for (int slot = from; slot < to; slot += kLanes) store(row + place[i] + slot - first[i], load(s + slot - b.first_slot));
  }
}

THRIFTY_INLINE bool seen(const WitnessArgs& w, const Block& b) {
  const int first = b.first_slot, end = b.first_slot + b.slots;
  return first < w.sinks || (first < w.high && end > w.low) || end > w.slots - w.forced;
}

// `count` scores -> what the row's probabilities are once they are multiplied with the returned factor.
THRIFTY_INLINE float soften_scores(float* s, int count) {
  store(s + count, set1(kLowest));
  V most = set1(kLowest), sum = zero();
  for (int i = 0; i < count; i += kLanes) most = max(most, load(s + i));
  const V top = set1(reduce_max(most));
  for (int i = 0; i < count; i += kLanes) {
    const V p = power_of_two(sub(load(s + i), top));
    store(s + i, p), sum = add(sum, p);
  }
  return 1.0f / reduce_add(sum);
}

// Rows row0..row1-1: found[i] = the greatest that they give slot low + i. scores: [rows * group][stride], with
// stride >= all that the last row sees + kWitnessPad; found: [high - low + kWitnessPad].
static void attend_witness(const AttendArgs& a, const WitnessArgs& w, int row0, int row1, float* scores, size_t stride, float* found, uint8_t* scratch) {
  Tile t = make_tile((row1 - row0) * a.group, a.dim, scratch);
  t.keys_only = true;
  scale_queries(a, row0, t);
  each_block(a, 0, page_count(a), [&](Block& b, int) {
    if (!seen(w, b)) return;
    limits(a, row0, b, t);
    if (!any_visible(t, 0, t.rows)) return;
    prepare_block(b, t);
    for (int first = 0; first < t.rows; first += kScoreRows) {
      const int count = t.rows - first < kScoreRows ? t.rows - first : kScoreRows;
      block_group<Scored>(a, b, t, first, count);
      for (int r = 0; r < count; r++) {
        float* s = t.scores + r * kPage;
        if (a.softcap > 0.0f || b.span->bias) {
          V x[4];
          adjust_scores(s, a, b, row0 + (first + r) / a.group, 0, kPage, x);
          for (int j = 0; j < 4; j++) store(s + j * kLanes, x[j]);
        }
        place_scores(w, b, s, scores + (size_t)(first + r) * stride);
      }
    }
  });
  const int judged = w.high - w.low;
  for (int i = 0; i < judged; i += kLanes) store(found + i, zero());
  for (int row = row0; row < row1; row++) {
    float* own = scores + (size_t)(row - row0) * a.group * stride;
    const int count = w.sinks + judged + w.forced - (a.n - 1 - row);
    for (int g = 0; g < a.group; g++) t.chunk_sum[g] = soften_scores(own + g * stride, count);
    for (int i = 0; i < judged; i += kLanes) {
      const float* p = own + w.sinks + i;
      V all = mul(load(p), set1(t.chunk_sum[0]));
      for (int g = 1; g < a.group; g++) {
        const V one = mul(load(p + g * stride), set1(t.chunk_sum[g]));
        all = w.mean ? add(all, one) : max(all, one);
      }
      store(found + i, max(load(found + i), w.mean ? mul(all, set1(1.0f / (float)a.group)) : all));
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
