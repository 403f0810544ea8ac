// Row-wise operations: quantising activations, norms, gates, soft caps, rotation. Included once per instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

#if !defined(THRIFTY_ROWS)
THRIFTY_INLINE void store_first(float* p, V v, int count) {
  float t[kLanes];
  store(t, v);
  for (int i = 0; i < count; i++) p[i] = t[i];
}
// Lane r: the largest lane of x[r], or the sum of its lanes.
template <int R> THRIFTY_INLINE V reduce_rows_max(const V* x) {
  float t[kLanes] = {};
  for (int r = 0; r < R; r++) t[r] = reduce_max(x[r]);
  return load(t);
}
template <int R> THRIFTY_INLINE V reduce_rows_add(const V* x) {
  float t[kLanes] = {};
  for (int r = 0; r < R; r++) t[r] = reduce_add(x[r]);
  return load(t);
}
#endif

// e^x for x <= 88, relative error below 2e-7 (range reduction by ln 2 in two parts, then degree 6 with near-minimax
// coefficients); 0 far below.
THRIFTY_INLINE V exponential_bounded(V x) {
  const V low = max(x, set1(kExponentialFloor));
  const V n = round_even(mul(low, set1(1.44269504088896341f)));
  V r = fma(n, set1(-0.693359375f), low);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.37731e-3f);
  p = fma(p, r, set1(8.36888e-3f));
  p = fma(p, r, set1(4.166914e-2f));
  p = fma(p, r, set1(1.6666519e-1f));
  p = fma(p, r, set1(4.999999e-1f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return times_power_of_two(p, n, x, kExponentialFloor);
}
// 2^x, x <= 0, for attention, whose scores are in units of log2: relative error below 3e-7.
THRIFTY_INLINE V power_of_two(V x) {
  const V low = max(x, set1(kPowerFloor)), n = round_even(low), r = sub(low, n);
  V p = set1(1.338130254e-03f);
  p = fma(p, r, set1(9.666368515e-03f));
  p = fma(p, r, set1(5.550381014e-02f));
  p = fma(p, r, set1(2.402234904e-01f));
  p = fma(p, r, set1(6.931471806e-01f));
  p = fma(p, r, set1(1.0f));  // exactly 1 at 0: what fades nothing must change nothing
  return times_power_of_two(p, n, x, kPowerFloor);
}
THRIFTY_INLINE V exponential(V x) { return exponential_bounded(min(x, set1(88.0f))); }

THRIFTY_INLINE V hyperbolic_tangent(V x) {
  V bounded = min(max(x, set1(-20.0f)), set1(20.0f));
  return sub(set1(1.0f), div(set1(2.0f), add(exponential(add(bounded, bounded)), set1(1.0f))));
}

// Up to 16 floats of a longer row, missing lanes zero.
THRIFTY_INLINE V load_some(const float* x, int count) {
  if (count >= kLanes) return load(x);
  float t[kLanes] = {};
  for (int i = 0; i < count; i++) t[i] = x[i];
  return load(t);
}
THRIFTY_INLINE void store_some(float* x, V v, int count) {
  if (count >= kLanes) return store(x, v);
  float t[kLanes];
  store(t, v);
  for (int i = 0; i < count; i++) x[i] = t[i];
}

// Two vectors of a row as the codes of one block.
THRIFTY_INLINE void quantise_block(V a, V b, float scale, ActivationBlock* destination) {
  if (scale == 0.0f) {
    *destination = ActivationBlock{};
    return;
  }
  V s = set1(scale), low = set1(-127.0f), high = set1(127.0f);
  int first;
  const int sum = store_int8x32(destination->q, &first, min(max(round_even(div(a, s)), low), high),
                                min(max(round_even(div(b, s)), low), high));
  destination->scale = scale;
  destination->scaled_sum = scale * (float)sum;
  destination->minus8 = -8 * sum;
  destination->minus8_first = -8 * first;
}

static void quantise(const float* x, int columns, ActivationBlock* destination) {
  for (int c = 0; c < columns; c += kBlockColumns, destination += kPanel) {
    V a = load_some(x + c, columns - c),
      b = columns - c > kLanes ? load_some(x + c + kLanes, columns - c - kLanes) : zero();
    quantise_block(a, b, reduce_max(max(absolute(a), absolute(b))) / 127.0f, destination);
  }
}

// The features of 16 columns that are not below the threshold, zeros elsewhere.
THRIFTY_INLINE V beyond(V x, float threshold) { return zero_below(x, absolute(x), threshold); }

// The outliers of a row, in its columns' order, and the end behind them.
static void list_outliers(const float* x, int columns, float threshold, ActivationOutliers* list) {
  int count = 0;
  const auto put = [&](int column, float value) {
    auto& place = list[(size_t)(count / kOutliers) * kPanel].of[count % kOutliers];
    place.column = column, place.value = value, count++;
  };
  for (int c = 0; c < columns; c += kLanes) {
    if (reduce_max(absolute(load_some(x + c, columns - c))) < threshold) continue;
    for (int i = c; i < columns && i < c + kLanes; i++)
      if (__builtin_fabsf(x[i]) >= threshold) put(i, x[i]);
  }
  put(-1, 0.0f);
}

static void quantise_token(const float* x, int columns, float threshold, ActivationBlock* destination) {
  const bool apart = threshold > 0.0f;
  V most = zero();
  for (int c = 0; c < columns; c += kLanes) {
    const V a = load_some(x + c, columns - c);
    most = max(most, absolute(apart ? sub(a, beyond(a, threshold)) : a));
  }
  const float scale = reduce_max(most) / 127.0f;
  for (int c = 0; c < columns; c += kBlockColumns, destination += kPanel) {
    V a = load_some(x + c, columns - c),
      b = columns - c > kLanes ? load_some(x + c + kLanes, columns - c - kLanes) : zero();
    if (apart) a = sub(a, beyond(a, threshold)), b = sub(b, beyond(b, threshold));
    quantise_block(a, b, scale, destination);
  }
  if (apart) list_outliers(x, columns, threshold, (ActivationOutliers*)destination);
}

// A row as pairs of bf16 columns, kPanel rows interleaved.
static void to_pairs(const float* x, int columns, uint32_t* destination) {
  for (int c = 0; c < columns; c += 2 * kLanes) {
    V a = load_some(x + c, columns - c),
      b = columns - c > kLanes ? load_some(x + c + kLanes, columns - c - kLanes) : zero();
    uint16_t t[2 * kLanes];
    store_bf16(t, a, b);
    int pairs = columns - c >= 2 * kLanes ? kLanes : (columns - c + 1) / 2;
    for (int i = 0; i < pairs; i++)
      destination[(size_t)(c / 2 + i) * kPanel] = (uint32_t)t[2 * i] | (uint32_t)t[2 * i + 1] << 16;
  }
}

// out = x / sqrt(mean(x^2) + epsilon) * weight. `out` may be `x`.
static void rms_norm(const float* x, const float* weight, float epsilon, int columns, float* out) {
  V a = zero(), b = zero();
  for (int c = 0; c < columns; c += 2 * kLanes) {
    V u = load_some(x + c, columns - c),
      v = columns - c > kLanes ? load_some(x + c + kLanes, columns - c - kLanes) : zero();
    a = fma(u, u, a), b = fma(v, v, b);
  }
  V inverse = set1(1.0f / __builtin_sqrtf(reduce_add(add(a, b)) / (float)columns + epsilon));
  for (int c = 0; c < columns; c += kLanes)
    store_some(out + c, mul(mul(load_some(x + c, columns - c), inverse), load_some(weight + c, columns - c)),
               columns - c);
}

THRIFTY_INLINE V silu(V x) { return div(x, add(set1(1.0f), exponential(sub(zero(), x)))); }
THRIFTY_INLINE V gelu_tanh(V x) {
  V inner = mul(mul(x, fma(mul(x, x), set1(0.044715f), set1(1.0f))), set1(0.79788456080286536f));
  return mul(mul(x, set1(0.5f)), add(set1(1.0f), hyperbolic_tangent(inner)));
}

// out = activation(gate) * up; activation 0: SiLU, 1: GELU (tanh form).
static void gate(const float* gate, const float* up, float* out, int count, int activation) {
  for (int c = 0; c < count; c += kLanes) {
    V g = load_some(gate + c, count - c), u = load_some(up + c, count - c);
    store_some(out + c, mul(activation == 0 ? silu(g) : gelu_tanh(g), u), count - c);
  }
}

static void add_to(float* x, const float* y, int count) {
  for (int c = 0; c < count; c += kLanes)
    store_some(x + c, add(load_some(x + c, count - c), load_some(y + c, count - c)), count - c);
}

static void cap(float* x, float limit, int count) {
  V l = set1(limit);
  for (int c = 0; c < count; c += kLanes)
    store_some(x + c, mul(l, hyperbolic_tangent(div(load_some(x + c, count - c), l))), count - c);
}

// Half-split rotary embedding of one head: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 = x[:half].
static void rotate(float* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

// First index of the largest value; -1 where there is none: a value is NaN, or the largest is infinite.
static int arg_max(const float* x, int count) {
  V best = set1(x[0]), sum = zero();
  int c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const V values = load(x + c);
    best = max(best, values), sum = add(sum, values);
  }
  float top = reduce_max(best), total = reduce_add(sum);
  for (; c < count; c++) top = x[c] > top ? x[c] : top, total += x[c];
  for (int i = 0; total != total && i < count; i++)  // a maximum may pass over a NaN, a sum never does
    if (x[i] != x[i]) return -1;
  if (top - top != 0.0f) return -1;
  for (int i = 0; i < count; i++)
    if (x[i] == top) return i;
  return -1;
}

}  // namespace thrifty::THRIFTY_ISA
