// Operations on the rows of one buffer: the activation of a plain MLP, and what a residual branch is multiplied by.
#pragma once
#include "plan/plan.hpp"

namespace thrifty {

// x = activation(x), in place.
struct Activate final : Operation {
  const char* kind() const override { return "activations"; }
  Activate(int layer, int buffer, int activation) : Operation(layer), buffer(buffer), activation(activation) {}
  void run(Plan&, Step&, Worker&) override;
  int buffer, activation;
};

// out += factor * in.
struct AddScaled final : Operation {
  const char* kind() const override { return "residuals"; }
  AddScaled(int layer, int in, float factor, int out) : Operation(layer), in(in), factor(factor), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  int in;
  float factor;
  int out;
};

}  // namespace thrifty
