// Products of single weights of fp16 on top of a linear, with its activations as its own kernel reads them. Each output
// adds its row's products in order, rounded one by one, to a sum that begins at 0; the sum is added to what the kernel
// wrote. The same bits for any number of rows.
#pragma once

namespace thrifty::THRIFTY_ISA {

// Activations of a linear: `items` of a column, the first of them that of a row; number i is that of i rows further on
// in the same panel.
template <Reads R> struct Activations;
template <> struct Activations<Reads::codes> {
  const ActivationBlock* x;
  size_t blocks;
  Activations(const Linear& w, const void* from) : x((const ActivationBlock*)from), blocks((size_t)w.blocks()) {}
  const ActivationBlock* items(int row, int column) const {
    return x + ((size_t)(row / kPanel) * blocks + (size_t)(column / kBlockColumns)) * kPanel + (size_t)(row % kPanel);
  }
  float value(const ActivationBlock* items, int i, int column) const {
    return items[i].scale * (float)items[i].q[column % kBlockColumns];
  }
};
template <> struct Activations<Reads::pairs> {
  const uint32_t* x;
  size_t pairs;
  Activations(const Linear& w, const void* from) : x((const uint32_t*)from), pairs(((size_t)w.in + 1) / 2) {}
  const uint32_t* items(int row, int column) const {
    return x + ((size_t)(row / kPanel) * pairs + (size_t)(column / 2)) * kPanel + (size_t)(row % kPanel);
  }
  float value(const uint32_t* items, int i, int column) const {
    const uint32_t bits = column % 2 ? items[i] & 0xffff0000u : items[i] << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};
template <> struct Activations<Reads::plain> {
  const float* x;
  size_t in;
  Activations(const Linear& w, const void* from) : x((const float*)from), in((size_t)w.in) {}
  const float* items(int row, int column) const { return x + (size_t)row * in + (size_t)column; }
  float value(const float* items, int i, int) const { return items[(size_t)i * in]; }
};

template <Reads R, int M>
THRIFTY_INLINE void overlay_row(const Overlay& o, int out, const Activations<R>& x, int row, float* y, size_t stride) {
  float sums[M];
  for (int i = 0; i < M; i++) sums[i] = 0.0f;
  for (int32_t e = o.starts[out]; e < o.starts[out + 1]; e++) {
    const float value = half_to_float(o.values[e]);
    const int column = o.columns[e];
    const auto* items = x.items(row, column);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) sums[i] += value * x.value(items, i, column);
  }
  for (int i = 0; i < M; i++) y[(size_t)i * stride] += sums[i];
}

template <Reads R>
static void overlay_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                          size_t stride) {
  const Overlay& o = w.overlay;
  const Activations<R> x(w, activations);
  const int first = tile0 * kLanes, end = tile1 * kLanes < w.out ? tile1 * kLanes : w.out;
  for (int out = first; out < end; out++) {
    if (o.starts[out] == o.starts[out + 1]) continue;
    float* to = y + (out - first);
    int row = row0;
    for (; row + kPanel <= row1; row += kPanel)
      overlay_row<R, kPanel>(o, out, x, row, to + (size_t)(row - row0) * stride, stride);
    for (; row < row1; row++) overlay_row<R, 1>(o, out, x, row, to + (size_t)(row - row0) * stride, stride);
  }
}

static void add_overlay(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                        size_t stride) {
  switch (w.reads()) {
    case Reads::codes:
      return overlay_tiles<Reads::codes>(w, tile0, tile1, activations, row0, row1, y, stride);
    case Reads::pairs:
      return overlay_tiles<Reads::pairs>(w, tile0, tile1, activations, row0, row1, y, stride);
    case Reads::plain:
      return overlay_tiles<Reads::plain>(w, tile0, tile1, activations, row0, row1, y, stride);
    case Reads::tokens:
      return;  // such linears are refused an overlay
  }
}

}  // namespace thrifty::THRIFTY_ISA
