// Gated linear attention: a state of fixed size instead of slots.
#pragma once
#include "plan/plan.hpp"

namespace thrifty {

// Buffers of one recurrent layer, and how it decays. A head's state is [key_dim, value_dim].
struct RecurrentCall {
  int query, key, value, decay, gate, out;  // [heads * dim]; decay [heads * key_dim] or [heads]
  const float* norm;                        // [value_dim]
  float epsilon, scale, temperature;
  int heads, key_dim, value_dim;
  int64_t head_numbers() const { return (int64_t)key_dim * value_dim; }
};

// For each row in order: S = diag(a) S + k v^T with a = sigmoid(decay)^(1 / temperature), o = scale * S^T q, and
// out = SiLU(gate) * rms_norm(o), head by head (arXiv 2312.06635, eq. 3 and section 4.4; with one decay a head, eq. 4).
// Always row by row in fp32: a row has the same bits alone, in a batch and in any chunk. A sequence's heads are what
// the workers share.
struct Recur final : Operation {
  const char* kind() const override { return "recurrences"; }
  Recur(int layer, const RecurrentCall& call) : Operation(layer), call(call) {}
  size_t scratch(const Plan&) const override { return (size_t)call.key_dim * sizeof(float); }
  void run(Plan&, Step&, Worker&) override;

  RecurrentCall call;

 private:
  void head(Plan& plan, const Step& s, const View& view, size_t sequence, int head, int first_row, float* decay) const;
};

}  // namespace thrifty
