// The operations of a plan. Each writes rows or tiles that no other worker touches; a barrier follows each.
#pragma once
#include "linear/mapped_rows.hpp"
#include "linear/panels.hpp"

namespace thrifty {

struct Embed final : Operation {
  const char* kind() const override { return "embedding"; }
  Embed(int linear, float scale, int out) : Operation(kEmbed), linear(linear), scale(scale), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  int linear;
  float scale;
  int out;
  MappedRows file;  // where the rows are read from; none: from the linear's own memory
};

struct Gated;

struct Project final : Operation {
  const char* kind() const override { return "projections"; }
  Project(int layer, int in, Panels panels, std::vector<int> linears, std::vector<int> outs, bool add)
      : Operation(layer), in(in), panels(panels), linears(std::move(linears)), outs(std::move(outs)), add(add) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  void warm(Plan&, const Step&, Worker&) override;
  int in;
  Panels panels;
  std::vector<int> linears, outs;
  bool add;
  const Gated* before = nullptr;  // the operation in front that may leave its rows ready for the linears; null: none
};

struct Gated final : Operation {
  const char* kind() const override { return "gate and up"; }
  Gated(int layer, int in, Panels panels, int gate, int up, int out, int activation)
      : Operation(layer), in(in), panels(panels), gate(gate), up(up), out(out), activation(activation) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  void warm(Plan&, const Step&, Worker&) override;
  // Whether its rows are written as the projection behind reads them, into the memory of the buffer `out`.
  bool packs(const Plan&, const Step&) const;
  int in;
  Panels panels;
  int gate, up, out, activation;
  const Project* reader =
      nullptr;  // the projection behind, where it reads quantised rows of `out` without a norm; null: none
};

struct RotateAppend final : Operation {
  const char* kind() const override { return "rotate and append"; }
  explicit RotateAppend(int layer) : Operation(layer) {}
  bool wanted(const Step& s) const override { return !left_to_attention || !one_by_one(s); }
  void run(Plan&, Step&, Worker&) override;
  // Whether each sequence gives one row, of which nothing is asked but its output: the attention behind does the same
  // then.
  static bool one_by_one(const Step& s) { return s.rows == (int)s.views.size() && !s.queries_out && s.sums.empty(); }
  const float* turn_of(const Step& s, int row) const;
  int q, k, v, rope;
  HeadTurn heads;
  bool left_to_attention = false;
};

struct Attend final : Operation {
  const char* kind() const override { return "attention"; }
  Attend(int layer, int q, int out, Attention::Call call, const RotateAppend* before)
      : Operation(layer), q(q), out(out), call(call), before(before) {}
  size_t scratch(const Plan& plan) const override {
    const LayerWidths& own = plan.shape.of(layer);
    return Attention::scratch_bytes(own.head_dim, own.heads / own.kv_heads);
  }
  void prepare(Plan&, Step&, int workers) override;
  void run(Plan&, Step&, Worker& w) override { attention.run(w); }
  void warm(Plan&, const Step&, Worker& w) override { attention.warm(w); }
  bool ends(const Step&) const override { return attention.failed(); }
  int q, out;
  Attention::Call call;
  const RotateAppend* before;  // the operation in front that it may do; null: none
  Attention attention;
};

// Rows of buffers normed in place, each as a whole (query and key rows before they are split into heads).
struct NormRows final : Operation {
  const char* kind() const override { return "norms"; }
  NormRows(int layer, std::vector<int> buffers, std::vector<const float*> norms, float epsilon)
      : Operation(layer), buffers(std::move(buffers)), norms(std::move(norms)), epsilon(epsilon) {}
  void run(Plan&, Step&, Worker&) override;
  std::vector<int> buffers;
  std::vector<const float*> norms;
  float epsilon;
};

// out += in, normed or times the sigmoid of a gate [rows, 1]; of few rows the workers share the columns.
struct AddRows final : Operation {
  const char* kind() const override { return "residuals"; }
  AddRows(int layer, int in, const float* norm, float epsilon, int gate, int out)
      : Operation(layer), in(in), norm(norm), epsilon(epsilon), gate(gate), out(out) {}
  void run(Plan&, Step&, Worker&) override;
  size_t scratch(const Plan& plan) const override { return padded_floats(plan.widths[(size_t)in]); }
  int in;
  const float* norm;
  float epsilon;
  int gate, out;
};

// Waits until what the layer needs has arrived; without it the step ends here.
struct Await final : Operation {
  const char* kind() const override { return "await"; }
  explicit Await(int layer) : Operation(layer) {}
  bool wanted(const Step& s) const override { return s.arrivals != nullptr; }
  void run(Plan&, Step&, Worker&) override;
  bool ends(const Step& s) const override { return s.missing >= 0; }
};

struct Logits final : Operation {
  const char* kind() const override { return "logits"; }
  Logits(int in, Panels panels, int linear, float softcap)
      : Operation(kLogits), in(in), panels(panels), linear(linear), softcap(softcap) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;
  void warm(Plan&, const Step&, Worker&) override;
  int in;
  Panels panels;
  int linear;
  float softcap;
};

}  // namespace thrifty
