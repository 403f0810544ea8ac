// A page of the cache rounded to codes with float16 parameters, as kernels/reference/affine.py: x = scale * code +
// minimum, codes from the rounded parameters. Included once per instruction set.
#pragma once
#include "attention/attention_page.hpp"

namespace thrifty::THRIFTY_ISA {

struct Affine {
  float minimum, scale;
  uint16_t minimum_bits, scale_bits;
};

// Parameters of a group between low and high. False where float16 does not hold them, or the group is not finite.
THRIFTY_INLINE bool affine(float low, float high, float levels, Affine& a) {
  a.minimum_bits = float_to_half(low), a.minimum = half_to_float(a.minimum_bits);
  const float rest = high - a.minimum;
  a.scale_bits = float_to_half(high == low ? rest : rest / levels), a.scale = half_to_float(a.scale_bits);
  return (a.minimum_bits & 0x7c00u) != 0x7c00u && (a.scale_bits & 0x7c00u) != 0x7c00u;
}

THRIFTY_INLINE V codes_of(V x, const Affine& a, V levels) {
  if (a.scale == 0.0f) return zero();
  return min(max(round_even(div(sub(x, set1(a.minimum)), set1(a.scale))), zero()), levels);
}

// Codes [rows][16] of one vector -> its 64 bytes (pack_lanes).
template <int B> THRIFTY_INLINE void pack_vector(const float* codes, int stride, uint8_t* to) {
  uint32_t words[kLanes] = {};
  for (int e = 0; e < code_rows(B); e++)
    for (int i = 0; i < kLanes; i++)
      words[i] |= (uint32_t)(int32_t)codes[e * stride + i] << (16 * (e % 2) + B * (e / 2));
  __builtin_memcpy(to, words, 64);
}

// Least and greatest of the first `count` lanes of N vectors, 1 or 2; whether all of them are numbers.
template <int N> THRIFTY_INLINE bool extremes(const V* x, int count, float& low, float& high) {
  const V most = set1(3.4028234664e38f), least = set1(-3.4028234664e38f);
  V below = sub(zero(), keep(x[0], 0, count, most)), above = keep(x[0], 0, count, least),
    held = keep(x[0], 0, count, zero()), sum = sub(held, held);
  if constexpr (N == 2) {
    below = max(below, sub(zero(), keep(x[1], 0, count - kLanes, most))),
    above = max(above, keep(x[1], 0, count - kLanes, least));
    held = keep(x[1], 0, count - kLanes, zero()), sum = add(sum, sub(held, held));
  }
  low = -reduce_max(below), high = reduce_max(above);
  return reduce_add(sum) == 0.0f;  // x - x is no number where x is not finite
}

// A group of 16 N numbers, of which the first `count` are real, to codes; the others' codes are zero.
template <int B, int N, class T> THRIFTY_INLINE bool compress_group(const T* from, int count, float* to, Affine& a) {
  constexpr int levels = (1 << B) - 1;
  bool fine = true;
  if (count <= 0) {
    for (int i = 0; i < N; i++) store(to + i * kLanes, zero());
    return fine;
  }
  V x[N];
  for (int i = 0; i < N; i++) x[i] = load_as_float(from + i * kLanes);
  float low, high;
  fine = extremes<N>(x, count, low, high) && affine(low, high, (float)levels, a);
  for (int i = 0; i < N; i++)
    store(to + i * kLanes, keep(codes_of(x[i], a, set1((float)levels)), 0, count - i * kLanes, zero()));
  return fine;
}

// H groups of 64 numbers, as in attention_page.hpp.
// `size` channels to a multiple of 64, `dim`: the last one again and again.
template <int B, int H, class T>
static bool compress_keys(const T* keys, int slots, int size, uint8_t* codes, uint16_t* params) {
  constexpr int rows = code_rows(B), group = kPage / H;
  const int dim = (int)align64(size);
  bool fine = true;
  float numbers[rows * kPage];
  for (int c = 0; c < dim; c += rows, codes += 4 * 64) {
    for (int e = 0; e < rows; e++)
      for (int h = 0; h < H; h++) {
        Affine a{};
        const int count = slots - group * h < group ? slots - group * h : group,
                  channel = c + e < size ? c + e : size - 1;
        fine = compress_group<B, group / kLanes>(keys + (size_t)channel * kPage + group * h, count,
                                                 numbers + e * kPage + group * h, a) &&
               fine;
        params[h * dim + c + e] = a.scale_bits, params[(H + h) * dim + c + e] = a.minimum_bits;
      }
    for (int j = 0; j < 4; j++) pack_vector<B>(numbers + j * kLanes, kPage, codes + 64 * j);
  }
  return fine;
}

template <int B, int H, class T>
static bool compress_values(const T* values, int slots, int size, uint8_t* codes, uint16_t* params) {
  constexpr int rows = code_rows(B), group = kPage / H, vectors = group / kLanes;
  const int dim = (int)align64(size), groups = dim / group;
  bool fine = true;
  float numbers[rows * group];
  T rest[group];  // a group that ends beyond the row
  const auto channels = [&](int slot, int first) {
    const T* row = values + (size_t)slot * size;
    if (first + group <= size) return row + first;
    for (int i = 0; i < group; i++) rest[i] = row[first + i < size ? first + i : size - 1];
    return (const T*)rest;
  };
  for (int i = 0; i < kPage; i += rows)
    for (int g = 0; g < groups; g++) {
      for (int e = 0; e < rows; e++) {
        const int slot = i + e;
        Affine a{};
        if (slot < slots)
          fine = compress_group<B, vectors>(channels(slot, g * group), group, numbers + e * group, a) && fine;
        else compress_group<B, vectors>(values, 0, numbers + e * group, a);
        params[g * kPage + slot] = a.scale_bits, params[(groups + g) * kPage + slot] = a.minimum_bits;
      }
      for (int j = 0; j < vectors; j++)
        pack_vector<B>(numbers + j * kLanes, group,
                       codes + ((size_t)(i / rows) * (dim / kLanes) + vectors * g + j) * 64);
    }
  return fine;
}

// One page of a full-precision span -> page `to` of a quantised one. False where its numbers cannot be held.
template <int B, int H> static bool compress_to(const Span& from, int page, int slots, int size, const CodePage& to) {
  uint8_t *keys = (uint8_t*)to.keys, *values = (uint8_t*)to.values;
  uint16_t *key_params = (uint16_t*)to.key_params, *value_params = (uint16_t*)to.value_params;
  const size_t start = (size_t)page * kPage * size, second = slab_layout(from.format, from.capacity, size).values;
  if (from.format == Format::f32) {
    const float *k = (const float*)from.base + start, *v = (const float*)(from.base + second) + start;
    return compress_keys<B, H>(k, slots, size, keys, key_params) &
           compress_values<B, H>(v, slots, size, values, value_params);
  }
  const uint16_t *k = (const uint16_t*)from.base + start, *v = (const uint16_t*)(from.base + second) + start;
  return compress_keys<B, H>(k, slots, size, keys, key_params) &
         compress_values<B, H>(v, slots, size, values, value_params);
}

static bool compress_page(const Span& from, int page, int slots, int dim, const Span& target, int target_page) {
  const CodePage to = code_page(target, target_page, dim);
  bool fine = false;
  const auto compress = [&]<int B, int H>()
                            __attribute__((always_inline)) { fine = compress_to<B, H>(from, page, slots, dim, to); };
  return with_codes(target.format, compress) && fine;
}

}  // namespace thrifty::THRIFTY_ISA
