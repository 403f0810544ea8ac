// Layer normalisation of whole rows, into a buffer that the next operation reads.
#pragma once
#include "plan/plan.hpp"

namespace thrifty {

// out = (x - mean) / sqrt(variance + epsilon) * weight + bias, in sixteen interleaved sums: the same bits on every
// instruction set.
void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int columns, float* out);

struct LayerNorm final : Operation {
  const char* kind() const override { return "norms"; }
  LayerNorm(int layer, int in, const float* weight, const float* bias, float epsilon, int out)
      : Operation(layer), in(in), weight(weight), bias(bias), epsilon(epsilon), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  int in;
  const float *weight, *bias;
  float epsilon;
  int out;
};

}  // namespace thrifty
