// Products of plain rows of weights, fp32 or fp16, with plain rows of fp32: products and sums rounded one by one, so
// that they have the same bits on every instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

THRIFTY_INLINE V load_plain(const float* p) { return load(p); }
THRIFTY_INLINE V load_plain(const uint16_t* p) { return load_half(p); }
THRIFTY_INLINE float plain_value(float x) { return x; }
THRIFTY_INLINE float plain_value(uint16_t x) { return half_to_float(x); }

// Products of a row of activations with C rows of weights: a fixed order, of sixteen interleaved sums.
template <int C, class T> THRIFTY_INLINE void plain_columns(const T* weights, const float* x, int in, float* sums) {
  V acc[C];
  for (int c = 0; c < C; c++) acc[c] = zero(), sums[c] = 0.0f;
  int i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    const V v = load(x + i);
    for (int c = 0; c < C; c++) acc[c] = add(acc[c], mul(load_plain(weights + (size_t)c * in + i), v));
  }
  for (int c = 0; c < C; c++) {
    float lanes[kLanes];
    store(lanes, acc[c]);
    for (int j = i; j < in; j++) sums[c] += plain_value(weights[(size_t)c * in + j]) * x[j];
    for (float lane : lanes) sums[c] += lane;
  }
}

template <class T>
static void plain_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                        size_t stride, bool add_to_y) {
  constexpr int C = 4;
  const float* x = (const float*)activations;
  const T* weights = (const T*)w.codes;
  const int first = tile0 * kLanes, end = tile1 * kLanes < w.out ? tile1 * kLanes : w.out;
  for (int c = first; c < end; c += C)
    for (int row = row0; row < row1; row++) {
      float sums[C], *to = y + (size_t)(row - row0) * stride + (c - first);
      const float* from = x + (size_t)row * w.in;
      const int count = end - c < C ? end - c : C;
      if (count == C) plain_columns<C>(weights + (size_t)c * w.in, from, w.in, sums);
      else
        for (int j = 0; j < count; j++) plain_columns<1>(weights + (size_t)(c + j) * w.in, from, w.in, sums + j);
      for (int j = 0; j < count; j++) {
        const float value = sums[j] + (w.bias ? w.bias[c + j] : 0.0f);
        to[j] = add_to_y ? to[j] + value : value;
      }
    }
}

}  // namespace thrifty::THRIFTY_ISA
