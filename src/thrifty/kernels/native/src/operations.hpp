// The operations of a plan. Each writes rows or tiles that no other worker touches; a barrier follows each.
#pragma once
#include "plan.hpp"

namespace thrifty {

// Rows of a buffer, normed if a norm is given, as activation panels. One or two rows are prepared by every worker for
// itself, which costs less than a barrier; more are shared out.
struct Panels {
  const float* norm;
  float epsilon;
  bool codes = false, pairs = false;  // which of the two kinds the linears need

  size_t scratch(int columns) const;
  struct Ready {
    const uint8_t *codes, *pairs;
    const uint8_t* of(const Linear& w) const { return w.kind == 16 ? pairs : codes; }
  };
  template <class F> Ready prepare(Plan& plan, Worker& w, int rows, int columns, F&& row_at) const;
};

struct Embed final : Operation {
  Embed(int linear, float scale, int out) : Operation(kEmbed), linear(linear), scale(scale), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  int linear;
  float scale;
  int out;
};

struct Project final : Operation {
  Project(int layer, int in, Panels panels, std::vector<int> linears, std::vector<int> outs, bool add)
      : Operation(layer), in(in), panels(panels), linears(std::move(linears)), outs(std::move(outs)), add(add) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  int in;
  Panels panels;
  std::vector<int> linears, outs;
  bool add;
};

struct Gated final : Operation {
  Gated(int layer, int in, Panels panels, int gate, int up, int out, int activation)
      : Operation(layer), in(in), panels(panels), gate(gate), up(up), out(out), activation(activation) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  int in;
  Panels panels;
  int gate, up, out, activation;
};

struct RotateAppend final : Operation {
  explicit RotateAppend(int layer) : Operation(layer) {}
  void run(Plan&, Step&, Worker&) override;
  int q, k, v, rope, half;
  const float *q_norm, *k_norm;
  float epsilon;
};

struct Attend final : Operation {
  Attend(int layer, int q, int out, Attention::Call call) : Operation(layer), q(q), out(out), call(call) {}
  size_t scratch(const Plan& plan) const override { return Attention::scratch_bytes(plan.shape.head_dim, plan.shape.heads / plan.shape.kv_heads); }
  void prepare(Plan&, Step&, int workers) override;
  void run(Plan&, Step&, Worker& w) override { attention.run(w); }
  int q, out;
  Attention::Call call;
  Attention attention;
};

struct NormAdd final : Operation {
  NormAdd(int layer, int in, const float* norm, float epsilon, int out) : Operation(layer), in(in), norm(norm), epsilon(epsilon), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  size_t scratch(const Plan& plan) const override { return (size_t)plan.widths[(size_t)in] * sizeof(float); }
  int in;
  const float* norm;
  float epsilon;
  int out;
};

struct Logits final : Operation {
  Logits(int in, Panels panels, int linear, float softcap) : Operation(kLogits), in(in), panels(panels), linear(linear), softcap(softcap) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  int in;
  Panels panels;
  int linear;
  float softcap;
};

}  // namespace thrifty
