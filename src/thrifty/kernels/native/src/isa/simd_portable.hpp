// Sixteen floats in four 16-byte compiler vectors: plain C++ for GCC and Clang on any processor.
#pragma once
#include <cstring>

#include "types.hpp"

#define THRIFTY_INLINE static inline __attribute__((always_inline))

namespace thrifty::THRIFTY_ISA {

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
struct V {
  F4 v[4];
};
constexpr const char* kName = "portable";
constexpr bool kPairsOfTiles = false;
constexpr int kScoreRows = 3, kScoreVectors = 1;

#define THRIFTY_EACH(expression)                   \
  V r;                                             \
  for (int i = 0; i < 4; i++) r.v[i] = expression; \
  return r

THRIFTY_INLINE V set1(float x) { THRIFTY_EACH((F4{x, x, x, x})); }
THRIFTY_INLINE V zero() { return set1(0.0f); }
THRIFTY_INLINE V load(const float* p) {
  V r;
  std::memcpy(&r, p, 64);
  return r;
}
THRIFTY_INLINE void store(float* p, V x) { std::memcpy(p, &x, 64); }
THRIFTY_INLINE V add(V x, V y) { THRIFTY_EACH(x.v[i] + y.v[i]); }
THRIFTY_INLINE V sub(V x, V y) { THRIFTY_EACH(x.v[i] - y.v[i]); }
THRIFTY_INLINE V mul(V x, V y) { THRIFTY_EACH(x.v[i] * y.v[i]); }
THRIFTY_INLINE V div(V x, V y) { THRIFTY_EACH(x.v[i] / y.v[i]); }
THRIFTY_INLINE V fma(V x, V y, V z) { THRIFTY_EACH(x.v[i] * y.v[i] + z.v[i]); }
THRIFTY_INLINE V fms(V x, V y, V z) { THRIFTY_EACH(x.v[i] * y.v[i] - z.v[i]); }
THRIFTY_INLINE V max(V x, V y) { THRIFTY_EACH((x.v[i] > y.v[i] ? x.v[i] : y.v[i])); }
THRIFTY_INLINE V min(V x, V y) { THRIFTY_EACH((x.v[i] < y.v[i] ? x.v[i] : y.v[i])); }
THRIFTY_INLINE V absolute(V x) { THRIFTY_EACH((x.v[i] < 0.0f ? -x.v[i] : x.v[i])); }
THRIFTY_INLINE V round_even(V x) {  // adding and taking off 1.5 * 2^23 rounds values below 2^22 to nearest even
  const F4 big = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};
  THRIFTY_EACH((x.v[i] + big) - big);
}
THRIFTY_INLINE float reduce_max(V x) {
  F4 a = max(x, x).v[0];
  for (int i = 1; i < 4; i++) a = a > x.v[i] ? a : x.v[i];
  float r = a[0];
  for (int i = 1; i < 4; i++) r = r > a[i] ? r : a[i];
  return r;
}
THRIFTY_INLINE float reduce_add(V x) {
  F4 a = (x.v[0] + x.v[2]) + (x.v[1] + x.v[3]);
  return (a[0] + a[2]) + (a[1] + a[3]);
}
THRIFTY_INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, body = h & 0x7fffu, bits;
  float f;
  if (body >= 0x7c00u) {
    bits = sign | 0x7f800000u | (body & 0x3ffu) << 13;
  } else if (body >= 0x400u) {
    bits = sign | (body + 0x1c000u) << 13;
  } else {
    f = (float)body * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  std::memcpy(&f, &bits, 4);
  return f;
}
THRIFTY_INLINE uint16_t float_to_half(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000u, body = u & 0x7fffffffu;
  if (body >= 0x47800000u) return (uint16_t)(sign | (body > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (body < 0x38800000u) {  // below the least normal number: adding 0.5 leaves units of 2^-24, rounded to nearest even
    float f;
    std::memcpy(&f, &body, 4);
    f += 0.5f;
    std::memcpy(&u, &f, 4);
    return (uint16_t)(sign | (u - 0x3f000000u));
  }
  return (uint16_t)(sign | ((body + 0xfffu + ((body >> 13) & 1u) - 0x38000000u) >> 13));
}
THRIFTY_INLINE V load_half(const uint16_t* p) {
  float f[16];
  for (int i = 0; i < 16; i++) f[i] = half_to_float(p[i]);
  return load(f);
}
THRIFTY_INLINE V load_bf16(const uint16_t* p) {
  uint32_t u[16];
  for (int i = 0; i < 16; i++) u[i] = (uint32_t)p[i] << 16;
  V r;
  std::memcpy(&r, u, 64);
  return r;
}
THRIFTY_INLINE V keep(V x, int lo, int hi, V y) {
  float a[16], b[16];
  store(a, x), store(b, y);
  for (int i = 0; i < 16; i++) b[i] = i >= lo && i < hi ? a[i] : b[i];
  return load(b);
}
THRIFTY_INLINE V zero_below(V value, V x, float limit) {
  const F4 l = {limit, limit, limit, limit}, none = {};
  THRIFTY_EACH((x.v[i] >= l ? value.v[i] : none));
}
// p * 2^n, where e^x = p * 2^n: 0 where that is too small to be normal.
constexpr float kExponentialFloor = -87.3f, kPowerFloor = -125.9f;
THRIFTY_INLINE V times_power_of_two(V p, V n, V x, float floor) {
  V r;
  for (int i = 0; i < 4; i++) {
    I4 e = __builtin_convertvector(n.v[i], I4);
    r.v[i] = (F4)((I4)p.v[i] + e * (1 << 23));
  }
  return zero_below(r, x, floor);
}
// Whole numbers, -127..127, to bytes; returns their sum and gives that of the first.
THRIFTY_INLINE int store_int8x32(int8_t* p, int* first, V x, V y) {
  float f[32];
  store(f, x), store(f + 16, y);
  int s[2] = {0, 0};
  for (int i = 0; i < 32; i++) p[i] = (int8_t)f[i], s[i / 16] += p[i];
  *first = s[0];
  return s[0] + s[1];
}
THRIFTY_INLINE uint16_t bf16_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
THRIFTY_INLINE void store_bf16(uint16_t* p, V x, V y) {
  float f[32];
  store(f, x), store(f + 16, y);
  for (int i = 0; i < 32; i++) p[i] = bf16_of(f[i]);
}
// Row e of the 16 lanes of a vector of codes (formats/kv.py, pack_lanes).
template <int B> THRIFTY_INLINE V unpack(const uint8_t* p, int e) {
  float f[16];
  for (int i = 0; i < 16; i++) {
    const uint8_t* half = p + 4 * i + 2 * (e % 2);
    f[i] = (float)(((half[0] | half[1] << 8) >> (B * (e / 2))) & ((1 << B) - 1));
  }
  return load(f);
}

THRIFTY_INLINE void fetch_line(const uint8_t* p) { __builtin_prefetch(p); }

THRIFTY_INLINE uint64_t read_lines(const uint8_t* p, size_t lines) {
  uint64_t s[8] = {}, x[8];
  for (size_t i = 0; i < lines; i++) {
    std::memcpy(x, p + 64 * i, 64);
    for (int j = 0; j < 8; j++) s[j] += x[j];
  }
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

}  // namespace thrifty::THRIFTY_ISA
