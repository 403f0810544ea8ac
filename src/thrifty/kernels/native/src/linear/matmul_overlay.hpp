// Products of single weights of fp16 on top of a linear, with its activations as its own kernel reads them. Each output
// adds its row's products in order, rounded one by one, to a sum that begins at 0; the sum is added to what the kernel
// wrote. The same bits for any number of rows.
#pragma once

namespace thrifty::THRIFTY_ISA {

// Activations of a linear, row by row and column by column.
template <Reads R> struct Activation;
template <> struct Activation<Reads::codes> {
  const ActivationBlock* x;
  size_t blocks;
  Activation(const Linear& w, const void* from) : x((const ActivationBlock*)from), blocks((size_t)w.blocks()) {}
  float operator()(int row, int column) const {
    const size_t panel = (size_t)(row / kPanel) * blocks + (size_t)(column / kBlockColumns);
    const ActivationBlock& own = x[panel * kPanel + (size_t)(row % kPanel)];
    return own.scale * (float)own.q[column % kBlockColumns];
  }
};
template <> struct Activation<Reads::pairs> {
  const uint32_t* x;
  size_t pairs;
  Activation(const Linear& w, const void* from) : x((const uint32_t*)from), pairs(((size_t)w.in + 1) / 2) {}
  float operator()(int row, int column) const {
    const size_t panel = (size_t)(row / kPanel) * pairs + (size_t)(column / 2);
    const uint32_t pair = x[panel * kPanel + (size_t)(row % kPanel)],
                   bits = column % 2 ? pair & 0xffff0000u : pair << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};
template <> struct Activation<Reads::plain> {
  const float* x;
  size_t in;
  Activation(const Linear& w, const void* from) : x((const float*)from), in((size_t)w.in) {}
  float operator()(int row, int column) const { return x[(size_t)row * in + (size_t)column]; }
};

template <Reads R, int M>
THRIFTY_INLINE void overlay_row(const Overlay& o, int out, const Activation<R>& x, int row, float* y, size_t stride) {
  float sums[M];
  for (int i = 0; i < M; i++) sums[i] = 0.0f;
  for (int32_t e = o.starts[out]; e < o.starts[out + 1]; e++) {
    const float value = half_to_float(o.values[e]);
    for (int i = 0; i < M; i++) sums[i] += value * x(row + i, o.columns[e]);
  }
  for (int i = 0; i < M; i++) y[(size_t)i * stride] += sums[i];
}

template <Reads R>
static void overlay_tiles(const Linear& w, int tile0, int tile1, const void* activations, int row0, int row1, float* y,
                          size_t stride) {
  const Overlay& o = w.overlay;
  const Activation<R> x(w, activations);
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
  }
}

}  // namespace thrifty::THRIFTY_ISA
