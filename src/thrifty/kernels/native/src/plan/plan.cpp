#include "plan/plan.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <new>
#include <set>
#include <stdexcept>

#include "isa/isa.hpp"
#include "plan/mixture.hpp"
#include "plan/operations.hpp"

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

template <class T> std::unique_ptr<T[], void (*)(void*)> allocate(size_t count) {
  void* p = std::aligned_alloc(64, align64(std::max<size_t>(count * sizeof(T), 64)));
  if (!p) throw std::bad_alloc();
  return {static_cast<T*>(p), std::free};
}

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

Panels make_panels(uintptr_t norm, float epsilon, const std::vector<const Linear*>& linears) {
  Panels p{(const float*)norm, epsilon, false, false, false};
  for (const Linear* w : linears)
    (w->reads() == Reads::plain ? p.plain : w->reads() == Reads::pairs ? p.pairs : p.codes) = true;
  return p;
}

}  // namespace

Plan::Plan(PlanShape s) : shape(s) {
  if (s.max_rows < 1 || s.max_rows > 65536)
    refuse("a plan's rows must be between 1 and 65536, not " + std::to_string(s.max_rows));
  if (s.layers < 1 || s.heads < 1 || s.kv_heads < 1 || s.heads % s.kv_heads)
    refuse("a plan needs layers, and query heads that are a multiple of the KV heads");
  if (!takes_head_dim(s.head_dim))
    refuse("a plan needs a head dimension that is " + std::string(kHeadDims) + ", not " + std::to_string(s.head_dim));
  states_.assign((size_t)s.layers, 0);
  for (int kind = 0; kind < 3; kind++) panels_.push_back(allocate<uint8_t>(0));
}

Plan::~Plan() = default;

const Linear& Plan::linear(int i) const {
  if (i < 0 || (size_t)i >= linears.size()) refuse("linear " + std::to_string(i) + " does not exist");
  return linears[(size_t)i];
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
  if (operation->layer >= shape.layers) refuse("layer " + std::to_string(operation->layer) + " is outside the plan");
  scratch_ = std::max(scratch_, operation->scratch(*this));
  operations_.push_back(std::move(operation));
}

// Panels of the three kinds, each for the widest row that a linear of the kind reads.
void Plan::allocate_panels() {
  size_t wanted[3] = {0, 0, 0};
  for (const Linear& w : linears) {
    size_t& bytes = wanted[(int)w.reads()];
    bytes = std::max(bytes, panel_bytes(w, shape.max_rows));
  }
  for (int kind = 0; kind < 3; kind++) {
    if (wanted[kind] <= panel_bytes_[kind]) continue;
    panels_[(size_t)kind] = allocate<uint8_t>(wanted[kind]);
    panel_bytes_[kind] = wanted[kind];
  }
}

void Plan::add_embed(int w, float scale, int out, const MappedRows& file) {
  if (linear(w).in != width(out)) refuse("the embedding's width differs from its buffer's");
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
  }
  auto project =
      std::make_unique<Project>(layer, in, make_panels(norm, epsilon, used), std::move(ws), std::move(outs), add_to);
  auto* gated = operations_.empty() ? nullptr : dynamic_cast<Gated*>(operations_.back().get());
  const Panels& panels = project->panels;
  if (gated && gated->layer == layer && gated->out == in && !norm && panels.codes && !panels.pairs && !panels.plain)
    gated->reader = project.get(), project->before = gated;
  add(std::move(project));
}

void Plan::add_gated(int layer, int in, uintptr_t norm, float epsilon, int gate, int up, int out, int activation) {
  const Linear &a = linear(gate), &b = linear(up);
  if (a.in != width(in) || b.in != a.in || a.out != width(out) || b.out != a.out)
    refuse("a gated projection's shapes do not match its buffers");
  if (activation != 0 && activation != 1) refuse("activation must be 0 (SiLU) or 1 (GELU, tanh form)");
  add(std::make_unique<Gated>(layer, in, make_panels(norm, epsilon, {&a, &b}), gate, up, out, activation));
}

void Plan::add_rotate(int layer, int q, int k, int v, uintptr_t q_norm, uintptr_t k_norm, float epsilon, int rope,
                      int rope_dim) {
  if (width(q) != shape.heads * shape.head_dim || width(k) != shape.kv_heads * shape.head_dim || width(v) != width(k))
    refuse("query, key and value buffers do not match the heads");
  if (rope < 0 || rope > 64 || rope_dim < 0 || rope_dim % 2 || rope_dim > shape.head_dim)
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
  if (width(q) != shape.heads * shape.head_dim || width(out) != width(q))
    refuse("query and output buffers do not match the heads");
  if (window < 0) refuse("window must be 0 (none) or positive");
  if (window > 0) window_ = window_ ? std::min(window_, window) : window;
  auto* before = operations_.empty() ? nullptr : dynamic_cast<RotateAppend*>(operations_.back().get());
  if (before && (before->layer != layer || before->q != q)) before = nullptr;
  if (before) before->left_to_attention = true;
  add(std::make_unique<Attend>(layer, q, out, Attention::Call{shape.heads, scale, softcap, window}, before));
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
  std::vector<const Linear*> used;
  for (size_t e = 0; e < count; e++) {
    const Linear &gate = linear(call.gates[e]), &up = linear(call.ups[e]), &down = linear(call.downs[e]);
    for (const Linear* w : {&gate, &up})
      if (w->in != width(in) || w->out != inner) refuse("the experts of a mixture must be of one shape");
    if (down.in != inner || down.out != width(in)) refuse("the experts of a mixture must be of one shape");
    used.push_back(&gate), used.push_back(&up);
  }
  if (!mixture) mixture = std::make_unique<MixtureBuffers>();
  mixture->grow(shape.max_rows, linears, call);
  add(std::make_unique<Mixture>(layer, in, make_panels(norm, epsilon, used), std::move(call)));
}

void Plan::add_await(int layer) { add(std::make_unique<Await>(layer)); }

void Plan::add_logits(int in, uintptr_t norm, float epsilon, int w, float softcap) {
  if (linear(w).in != width(in)) refuse("the head's width differs from its buffer's");
  logits_ = linear(w).out;
  add(std::make_unique<Logits>(in, make_panels(norm, epsilon, {&linear(w)}), w, softcap));
}

void Plan::check(const Step& s) const {
  if (s.rows < 1 || s.rows > shape.max_rows)
    refuse("the plan takes 1 to " + std::to_string(shape.max_rows) + " rows, not " + std::to_string(s.rows));
  if (s.first_layer < 0 || s.last_layer > shape.layers || s.first_layer > s.last_layer)
    refuse("layers " + std::to_string(s.first_layer) + ".." + std::to_string(s.last_layer) +
           " are outside the plan's " + std::to_string(shape.layers));
  for (int i = 0; s.tokens && i < s.rows; i++)
    if (s.tokens[i] < 0 || s.tokens[i] >= vocabulary_)
      refuse("token id " + std::to_string(s.tokens[i]) + " is outside the vocabulary of " +
             std::to_string(vocabulary_));
  for (int i = 0; i < s.logit_count; i++)
    if (s.logit_rows[i] < 0 || s.logit_rows[i] >= s.rows)
      refuse("logit row " + std::to_string(s.logit_rows[i]) + " is outside the step's " + std::to_string(s.rows) +
             " rows");
  if (!s.skip.empty() && s.skip.size() != (size_t)shape.layers) refuse("skip needs one entry a layer");
  if (s.first_layer == s.last_layer) return;
  if (s.queries_out && s.last_layer != s.first_layer + 1) refuse("queries can be returned for one layer at a time");
  check_views(s);
  check_sight(s);
}

void Plan::check_views(const Step& s) const {
  if (!s.turns.empty() && s.turns.size() != ropes_.size() * (size_t)s.rows)
    refuse("the step needs an address of rotations for each row and rope");
  if (s.turns.empty() && s.rotation.size() < ropes_.size())
    refuse("the step needs " + std::to_string(ropes_.size()) + " rotation tables");
  if (!s.sums.empty() && s.sums.size() != s.views.size()) refuse("attention sums need one entry for each view");
  if (s.views.size() != s.counts.size()) refuse("a step needs one row count for each view");
  long long rows = 0;
  for (size_t i = 0; i < s.views.size(); i++) {
    const View& v = *s.views[i];
    if (s.counts[i] < 1) refuse("each view needs at least one row");
    if (v.layers() != shape.layers || v.kv_heads() != shape.kv_heads || v.head_dim() != shape.head_dim)
      refuse("a view's layers, KV heads and head dimension must equal the plan's");
    rows += s.counts[i];
    check_sums(s, i);
    check_states(s, v);
    for (int layer = s.first_layer; layer < s.last_layer; layer++)
      if ((s.skip.empty() || !s.skip[(size_t)layer]) && v.room(layer) < s.counts[i])
        refuse("layer " + std::to_string(layer) + " of view " + std::to_string(i) + " has room for " +
               std::to_string(v.room(layer)) + " more tokens, not " + std::to_string(s.counts[i]) +
               "; push open pages first");
  }
  if (rows != s.rows)
    refuse("the views' row counts sum to " + std::to_string(rows) + ", not to " + std::to_string(s.rows));
  if (std::set<const View*>(s.views.begin(), s.views.end()).size() != s.views.size())
    refuse("a view may appear only once in a step");
  if (s.arrivals && s.arrivals->layers() != shape.layers)
    refuse("arrivals of " + std::to_string(s.arrivals->layers()) + " layers do not fit a plan of " +
           std::to_string(shape.layers));
}

// Which rows of this very step a row sees.
void Plan::check_sight(const Step& s) const {
  if (s.tree && s.ahead) refuse("a step takes a tree or spans that see ahead, not both");
  size_t row = 0;
  for (int count : s.counts) {
    if (s.tree && count > 64) refuse("a tree has at most 64 rows a sequence, not " + std::to_string(count));
    if (s.tree && window_ > 0 && count > window_)
      refuse("a tree of " + std::to_string(count) + " rows is longer than the attention window of " +
             std::to_string(window_));
    for (int j = 0; j < count; j++, row++) {
      if (s.tree && s.tree[row] >> j != 1)
        refuse("row " + std::to_string(row) + " of a tree must see itself and no later row of its sequence");
      if (s.ahead && (s.ahead[row] < 0 || s.ahead[row] >= count - j))
        refuse("row " + std::to_string(row) + " cannot see " + std::to_string(s.ahead[row]) +
               " rows ahead: its sequence has " + std::to_string(count - j - 1) + " behind it in this step");
    }
  }
}

void Plan::check_sums(const Step& s, size_t i) const {
  if (s.sums.empty() || s.sums[i].layers.empty()) return;
  if (s.sums[i].layers.size() != (size_t)shape.layers) refuse("attention sums need one address (or 0) a layer");
  for (int layer = s.first_layer; layer < s.last_layer; layer++)
    for (int h = 0; s.sums[i].layers[(size_t)layer] && h < shape.kv_heads; h++)
      if (s.views[i]->tokens(layer, h) + s.counts[i] > s.sums[i].stride)
        refuse("attention sums of " + std::to_string(s.sums[i].stride) + " slots are too few for layer " +
               std::to_string(layer) + " of view " + std::to_string(i));
}

// Counts the new slots as used in every layer that runs; RotateAppend then writes them.
void Plan::derive(Step& s) const {
  s.sequence_of.clear(), s.slot_of.clear();
  for (size_t i = 0; i < s.counts.size(); i++)
    for (int j = 0; j < s.counts[i]; j++) s.sequence_of.push_back((int)i), s.slot_of.push_back(j);
  s.slots.assign((size_t)shape.layers * s.views.size() * (size_t)shape.kv_heads, 0);
  for (int layer = s.first_layer; layer < s.last_layer; layer++) {
    if (!s.skip.empty() && s.skip[(size_t)layer]) continue;
    for (size_t i = 0; i < s.views.size(); i++) {
      for (int h = 0; h < shape.kv_heads; h++)
        s.slots[((size_t)layer * s.views.size() + i) * (size_t)shape.kv_heads + (size_t)h] =
            s.views[i]->tokens(layer, h);
      s.views[i]->reserve(layer, s.counts[i]);
    }
  }
}

// Forgets the slots that `derive` counted.
void Plan::undo(Step& s) const {
  for (int layer = s.first_layer; layer < s.last_layer; layer++)
    for (size_t i = 0; i < s.views.size() && (s.skip.empty() || !s.skip[(size_t)layer]); i++)
      s.views[i]->truncate(layer, s.counts[i]);
}

bool Plan::wanted(const Operation& op, const Step& s) const {
  if (op.layer == Operation::kEmbed) return s.tokens != nullptr;
  if (op.layer == Operation::kLogits) return s.logit_count > 0;
  return op.layer >= s.first_layer && op.layer < s.last_layer && (s.skip.empty() || !s.skip[(size_t)op.layer]) &&
         op.wanted(s);
}

void Plan::execute(Step& s, Worker& w) {
  for (size_t i = 0; i < operations_.size(); i++) {
    Operation& op = *operations_[i];
    if (!wanted(op, s)) continue;
    const bool timed = profiled_ && w.id == 0;
    const auto start = timed ? Clock::now() : Clock::time_point();
    op.run(*this, s, w);
    const bool over = op.ends(s);
    if (s.rows <= TileTasks::kFew) {
      size_t after = i + 1;
      while (after < operations_.size() && !wanted(*operations_[after], s)) after++;
      if (after < operations_.size()) operations_[after]->warm(*this, s, w);
    }
    w.barrier();
    if (timed) op.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    if (over) return;
    const bool ends_layer = i + 1 == operations_.size() || operations_[i + 1]->layer != op.layer;
    if (op.layer < 0 || !ends_layer || s.after.empty()) continue;
    s.after.run(op.layer, s.sequence_of, buffer(0, s), (size_t)widths[0], w);
  }
}

void Plan::prepare(Step& s, int workers) {
  for (auto& op : operations_)
    __builtin_prefetch(op.get(), 1),
        __builtin_prefetch((const char*)op.get() + 64, 1);  // each was last read a step ago
  // A later layer may grow the buffers that all layers share, and so move them: then every layer's pointers are set
  // anew.
  const float *partials, *finals;
  do {
    partials = attention.partials.data(), finals = attention.finals.data();
    for (auto& op : operations_) {
      op->claims.reset(workers);
      if (wanted(*op, s)) op->prepare(*this, s, workers);
    }
  } while (partials != attention.partials.data() || finals != attention.finals.data());
}

void Plan::run(Step& s) {
  const auto start = Clock::now();
  const double processor = processor_seconds();
  check(s);
  if (s.adapters) s.adapters->check(s.rows);
  s.after.check(s.rows);
  allocate_panels();
  const int workers = Pool::shared().threads();
  derive(s);
  std::vector<std::unique_ptr<View::Busy>> busy;
  for (View* v : s.views) busy.push_back(std::make_unique<View::Busy>(*v));
  try {
    prepare(s, workers);
    Pool::shared().run(scratch_, [&](Worker& w) { execute(s, w); });
  } catch (...) {
    busy.clear();
    undo(s);
    throw;
  }
  spent_.seconds += std::chrono::duration<double>(Clock::now() - start).count(),
      spent_.processor += processor_seconds() - processor;
  if (s.missing < 0) return;
  busy.clear();
  undo(s);
  throw std::runtime_error("what layer " + std::to_string(s.missing) + " needs did not arrive within " +
                           std::to_string(s.patience) + " seconds; set its flag, or allow more time");
}

void Plan::profile(bool on) {
  profiled_ = on;
  for (auto& op : operations_) op->seconds = on ? 0 : op->seconds;
}

std::vector<std::pair<std::string, double>> Plan::seconds() const {
  std::vector<std::pair<std::string, double>> found;
  for (const auto& op : operations_) {
    const auto same =
        std::find_if(found.begin(), found.end(), [&](const auto& one) { return one.first == op->kind(); });
    if (same == found.end()) found.emplace_back(op->kind(), op->seconds);
    else same->second += op->seconds;
  }
  return found;
}

size_t Plan::bytes() const {
  return bytes_ + panel_bytes_[0] + panel_bytes_[1] + panel_bytes_[2] + attention.bytes() +
         (mixture ? mixture->bytes() : 0) + scratch_ * (size_t)Pool::shared().threads();
}

}  // namespace thrifty
