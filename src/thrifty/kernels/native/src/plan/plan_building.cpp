// How a plan is built: its linears, buffers and operations, in the order in which they will run.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "isa/isa.hpp"
#include "plan/mixture.hpp"
#include "plan/operations.hpp"
#include "plan/plan.hpp"

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

template <class T> std::unique_ptr<T[], void (*)(void*)> allocate(size_t count) {
  void* p = std::aligned_alloc(64, align64(std::max<size_t>(count * sizeof(T), 64)));
  if (!p) throw std::bad_alloc();
  return {static_cast<T*>(p), std::free};
}

// What the linears read, and what the V of those of low rank read.
Panels make_panels(uintptr_t norm, float epsilon, const std::vector<const Linear*>& linears) {
  Panels p{(const float*)norm, epsilon};
  const auto add = [&](const Linear& w) {
    switch (w.reads()) {
      case Reads::plain:
        p.plain = true;
        break;
      case Reads::pairs:
        p.pairs = true;
        break;
      case Reads::tokens:
        if (p.tokens && p.threshold != w.threshold)
          refuse("linears that read the same rows leave outliers of one threshold apart, not of " +
                 std::to_string(p.threshold) + " and " + std::to_string(w.threshold) +
                 " (0: none): compress them alike");
        p.tokens = true, p.threshold = w.threshold;
        break;
      default:
        p.codes = true;
    }
  };
  for (const Linear* w : linears) {
    add(*w);
    if (w->low) add(w->low->down);
  }
  return p;
}

}  // namespace

Plan::Plan(PlanShape s) : shape(std::move(s)) {
  if (shape.max_rows < 1 || shape.max_rows > 65536)
    refuse("a plan's rows must be between 1 and 65536, not " + std::to_string(shape.max_rows));
  if (shape.widths.empty()) refuse("a plan needs layers, and query heads that are a multiple of the KV heads");
  for (const LayerWidths& own : shape.widths) {
    if (own.heads < 1 || own.kv_heads < 1 || own.heads % own.kv_heads)
      refuse("a plan needs layers, and query heads that are a multiple of the KV heads");
    if (!takes_head_dim(own.head_dim))
      refuse("a plan needs a head dimension that is " + std::string(kHeadDims) + ", not " +
             std::to_string(own.head_dim));
    kv_stride_ = std::max(kv_stride_, own.kv_heads);
  }
  states_.assign(shape.widths.size(), 0);
  for (int kind = 0; kind < kReads; kind++) panels_.push_back(allocate<uint8_t>(0));
}

Plan::~Plan() = default;

const Linear& Plan::linear(int i) const {
  if (i < 0 || (size_t)i >= linears.size()) refuse("linear " + std::to_string(i) + " does not exist");
  return linears[(size_t)i];
}

const LayerWidths& Plan::widths_of(int layer) const {
  if (layer < 0 || layer >= shape.layers()) refuse("layer " + std::to_string(layer) + " is outside the plan");
  return shape.of(layer);
}

int Plan::width(int i) const {
  if (i < 0 || (size_t)i >= widths.size()) refuse("buffer " + std::to_string(i) + " does not exist");
  return widths[(size_t)i];
}

int Plan::add_linear(const Linear& linear) {
  linears.push_back(linear);
  return (int)linears.size() - 1;
}

int Plan::add_buffer(int width) {
  if (width < 1) refuse("a buffer needs a positive width");
  widths.push_back(width);
  buffers_.push_back(allocate<float>((size_t)width * (size_t)shape.max_rows));
  bytes_ += (size_t)width * (size_t)shape.max_rows * sizeof(float);
  return (int)widths.size() - 1;
}

void Plan::add(std::unique_ptr<Operation> operation) {
  if (operation->layer >= shape.layers()) refuse("layer " + std::to_string(operation->layer) + " is outside the plan");
  scratch_ = std::max(scratch_, operation->scratch(*this));
  operations_.push_back(std::move(operation));
}

// Panels of the four kinds, each for the widest row that a linear of the kind reads.
void Plan::allocate_panels() {
  size_t wanted[kReads] = {};
  const auto add = [&](const Linear& w) {
    size_t& bytes = wanted[(int)w.reads()];
    bytes = std::max(bytes, panel_bytes(w, shape.max_rows));
  };
  for (const Linear& w : linears) {
    add(w);
    if (w.low) add(w.low->down);
  }
  for (int kind = 0; kind < kReads; kind++) {
    if (wanted[kind] <= panel_bytes_[kind]) continue;
    panels_[(size_t)kind] = allocate<uint8_t>(wanted[kind]);
    panel_bytes_[kind] = wanted[kind];
  }
}

void Plan::add_embed(int w, float scale, int out, const MappedRows& file) {
  if (linear(w).in != width(out)) refuse("the embedding's width differs from its buffer's");
  if (linear(w).low) refuse("an embedding cannot be of low rank");
  if (linear(w).train) refuse("an embedding cannot be a train of tensors");
  vocabulary_ = linear(w).out;
  auto embed = std::make_unique<Embed>(w, scale, out);
  embed->file = file;
  add(std::move(embed));
}

void Plan::add_project(int layer, int in, uintptr_t norm, float epsilon, std::vector<int> ws, std::vector<int> outs,
                       bool add_to) {
  if (ws.empty() || ws.size() > Adapters::kTogether || ws.size() != outs.size())
    refuse("a projection needs one output buffer for each of one to three linears");
  std::vector<const Linear*> used;
  for (size_t i = 0; i < ws.size(); i++) {
    used.push_back(&linear(ws[i]));
    if (used[i]->in != width(in) || used[i]->out != width(outs[i]))
      refuse("a projection's shapes do not match its buffers");
    lowered.grow(*used[i], (int)ws.size(), shape.max_rows);
    contracted.grow(*used[i], (int)ws.size(), shape.max_rows);
  }
  auto project =
      std::make_unique<Project>(layer, in, make_panels(norm, epsilon, used), std::move(ws), std::move(outs), add_to);
  auto* gated = operations_.empty() ? nullptr : dynamic_cast<Gated*>(operations_.back().get());
  const Panels& panels = project->panels;
  const bool only_codes = panels.codes && !panels.pairs && !panels.plain && !panels.tokens;
  if (gated && gated->layer == layer && gated->out == in && !norm && only_codes)
    gated->reader = project.get(), project->before = gated;
  add(std::move(project));
}

void Plan::add_gated(int layer, int in, uintptr_t norm, float epsilon, int gate, int up, int out, int activation) {
  const Linear &a = linear(gate), &b = linear(up);
  if (a.in != width(in) || b.in != a.in || a.out != width(out) || b.out != a.out)
    refuse("a gated projection's shapes do not match its buffers");
  if (activation != 0 && activation != 1) refuse("activation must be 0 (SiLU) or 1 (GELU, tanh form)");
  for (const Linear* w : {&a, &b}) lowered.grow(*w, 2, shape.max_rows), contracted.grow(*w, 2, shape.max_rows);
  add(std::make_unique<Gated>(layer, in, make_panels(norm, epsilon, {&a, &b}), gate, up, out, activation));
}

void Plan::add_rotate(int layer, int q, int k, int v, uintptr_t q_norm, uintptr_t k_norm, float epsilon, int rope,
                      int rope_dim) {
  const LayerWidths& own = widths_of(layer);
  if (width(q) != own.heads * own.head_dim || width(k) != own.kv_heads * own.head_dim || width(v) != width(k))
    refuse("query, key and value buffers do not match the heads");
  if (rope < 0 || rope > 64 || rope_dim < 0 || rope_dim % 2 || rope_dim > own.head_dim)
    refuse("the rotary dimension must be even and at most the head dimension");
  auto op = std::make_unique<RotateAppend>(layer);
  op->q = q, op->k = k, op->v = v, op->rope = rope;
  op->heads = {(const float*)q_norm, (const float*)k_norm, epsilon, rope_dim / 2};
  if ((int)ropes_.size() <= rope) ropes_.resize((size_t)rope + 1, 0);
  if (ropes_[(size_t)rope] && ropes_[(size_t)rope] != rope_dim) refuse("a rope has one dimension in all layers");
  ropes_[(size_t)rope] = rope_dim;
  add(std::move(op));
}

void Plan::add_attend(int layer, int q, int out, float scale, int window, float softcap) {
  const LayerWidths& own = widths_of(layer);
  if (width(q) != own.heads * own.head_dim || width(out) != width(q))
    refuse("query and output buffers do not match the heads");
  if (window < 0) refuse("window must be 0 (none) or positive");
  if (window > 0) window_ = window_ ? std::min(window_, window) : window;
  auto* before = operations_.empty() ? nullptr : dynamic_cast<RotateAppend*>(operations_.back().get());
  if (before && (before->layer != layer || before->q != q)) before = nullptr;
  if (before) before->left_to_attention = true;
  add(std::make_unique<Attend>(layer, q, out, Attention::Call{own.heads, scale, softcap, window}, before));
}

void Plan::add_norm_rows(int layer, std::vector<int> buffers, const std::vector<uintptr_t>& norms, float epsilon) {
  if (buffers.empty() || buffers.size() != norms.size()) refuse("norm_rows needs one norm for each buffer");
  std::vector<const float*> weights;
  for (size_t i = 0; i < norms.size(); i++) {
    if (width(buffers[i]) < 1 || !norms[i]) refuse("norm_rows needs one norm for each buffer");
    weights.push_back((const float*)norms[i]);
  }
  add(std::make_unique<NormRows>(layer, std::move(buffers), std::move(weights), epsilon));
}

void Plan::add_rows(int layer, int in, uintptr_t norm, float epsilon, int gate, int out) {
  if (width(in) != width(out) || in == out) refuse("add_rows needs two buffers of one width");
  if (gate >= 0 && width(gate) != 1) refuse("a gate's buffer has width 1, not " + std::to_string(width(gate)));
  add(std::make_unique<AddRows>(layer, in, (const float*)norm, epsilon, gate, out));
}

void Plan::add_mixture(int layer, int in, uintptr_t norm, float epsilon, MixtureCall call) {
  const size_t count = call.gates.size();
  if (count < 1 || call.ups.size() != count || call.downs.size() != count || call.active < 1 ||
      (size_t)call.active > count)
    refuse("a mixture needs gate, up and down of each expert, and 1 to " + std::to_string(count) +
           " active ones, not " + std::to_string(call.active));
  if (width(call.scores) != (int)count || width(call.sum) != width(in) || call.sum == in ||
      (call.out >= 0 && width(call.out) != width(in)))
    refuse("a mixture's shapes do not match its buffers");
  if (call.activation != 0 && call.activation != 1) refuse("activation must be 0 (SiLU) or 1 (GELU, tanh form)");
  const int inner = linear(call.gates[0]).out;
  std::vector<const Linear*> used, last;
  for (size_t e = 0; e < count; e++) {
    const Linear &gate = linear(call.gates[e]), &up = linear(call.ups[e]), &down = linear(call.downs[e]);
    if (gate.train || up.train || down.train) refuse("experts cannot be trains of tensors");
    for (const Linear* w : {&gate, &up})
      if (w->in != width(in) || w->out != inner) refuse("the experts of a mixture must be of one shape");
    if (down.in != inner || down.out != width(in)) refuse("the experts of a mixture must be of one shape");
    used.push_back(&gate), used.push_back(&up), last.push_back(&down);
  }
  make_panels(0, 0.0f, last);  // refuses experts whose rows cannot share a panel
  if (!mixture) mixture = std::make_unique<MixtureBuffers>();
  mixture->grow(shape.max_rows, linears, call);
  add(std::make_unique<Mixture>(layer, in, make_panels(norm, epsilon, used), std::move(call)));
}

void Plan::add_await(int layer) { add(std::make_unique<Await>(layer)); }

void Plan::add_logits(int in, uintptr_t norm, float epsilon, int w, float softcap) {
  if (linear(w).in != width(in)) refuse("the head's width differs from its buffer's");
  lowered.grow(linear(w), 1, shape.max_rows);
  contracted.grow(linear(w), 1, shape.max_rows);
  logits_ = linear(w).out;
  add(std::make_unique<Logits>(in, make_panels(norm, epsilon, {&linear(w)}), w, softcap));
}

}  // namespace thrifty
