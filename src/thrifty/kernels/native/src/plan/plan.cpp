#include "plan/plan.hpp"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <set>
#include <stdexcept>

#include "plan/mixture.hpp"
#include "plan/operations.hpp"

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

}  // namespace

void Plan::check(const Step& s) const {
  if (s.rows < 1 || s.rows > shape.max_rows)
    refuse("the plan takes 1 to " + std::to_string(shape.max_rows) + " rows, not " + std::to_string(s.rows));
  if (s.first_layer < 0 || s.last_layer > shape.layers() || s.first_layer > s.last_layer)
    refuse("layers " + std::to_string(s.first_layer) + ".." + std::to_string(s.last_layer) +
           " are outside the plan's " + std::to_string(shape.layers()));
  for (int i = 0; s.tokens && i < s.rows; i++)
    if (s.tokens[i] < 0 || s.tokens[i] >= vocabulary_)
      refuse("token id " + std::to_string(s.tokens[i]) + " is outside the vocabulary of " +
             std::to_string(vocabulary_));
  for (int i = 0; i < s.logit_count; i++)
    if (s.logit_rows[i] < 0 || s.logit_rows[i] >= s.rows)
      refuse("logit row " + std::to_string(s.logit_rows[i]) + " is outside the step's " + std::to_string(s.rows) +
             " rows");
  if (!s.skip.empty() && s.skip.size() != (size_t)shape.layers()) refuse("skip needs one entry a layer");
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
    bool fits = v.layers() == shape.layers();
    for (int layer = 0; fits && layer < shape.layers(); layer++)
      fits = v.kv_heads(layer) == shape.of(layer).kv_heads && v.head_dim(layer) == shape.of(layer).head_dim;
    if (!fits) refuse("a view's layers, KV heads and head dimension must equal the plan's");
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
  if (s.arrivals && s.arrivals->layers() != shape.layers())
    refuse("arrivals of " + std::to_string(s.arrivals->layers()) + " layers do not fit a plan of " +
           std::to_string(shape.layers()));
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
  if (s.sums[i].layers.size() != (size_t)shape.layers()) refuse("attention sums need one address (or 0) a layer");
  for (int layer = s.first_layer; layer < s.last_layer; layer++)
    for (int h = 0; s.sums[i].layers[(size_t)layer] && h < shape.of(layer).kv_heads; h++)
      if (s.views[i]->tokens(layer, h) + s.counts[i] > s.sums[i].stride)
        refuse("attention sums of " + std::to_string(s.sums[i].stride) + " slots are too few for layer " +
               std::to_string(layer) + " of view " + std::to_string(i));
}

// Counts the new slots as used in every layer that runs; RotateAppend then writes them.
void Plan::derive(Step& s) const {
  s.sequence_of.clear(), s.slot_of.clear();
  for (size_t i = 0; i < s.counts.size(); i++)
    for (int j = 0; j < s.counts[i]; j++) s.sequence_of.push_back((int)i), s.slot_of.push_back(j);
  s.kv_stride = kv_stride_;
  s.slots.assign((size_t)shape.layers() * s.views.size() * (size_t)kv_stride_, 0);
  for (int layer = s.first_layer; layer < s.last_layer; layer++) {
    if (!s.skip.empty() && s.skip[(size_t)layer]) continue;
    for (size_t i = 0; i < s.views.size(); i++) {
      for (int h = 0; h < shape.of(layer).kv_heads; h++)
        s.slots[s.slot_place(layer, i, h)] = s.views[i]->tokens(layer, h);
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

void Plan::open_streams(Step& s) const {
  std::vector<int> layers;
  for (int layer = s.first_layer; layer < s.last_layer; layer++)
    if (s.skip.empty() || !s.skip[(size_t)layer]) layers.push_back(layer);
  if (!layers.empty() && Streams::wanted(s.views)) s.streams = std::make_unique<Streams>(s.views, layers);
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
  const float *partials, *finals, *scores;
  const uint64_t* seen;
  do {
    partials = attention.partials.data(), finals = attention.finals.data();
    scores = attention.choice.scores.data(), seen = attention.choice.seen.data();
    for (auto& op : operations_) {
      op->claims.reset(workers);
      if (wanted(*op, s)) op->prepare(*this, s, workers);
    }
  } while (partials != attention.partials.data() || finals != attention.finals.data() ||
           scores != attention.choice.scores.data() || seen != attention.choice.seen.data());
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
  std::string unread;
  try {
    open_streams(s);
    prepare(s, workers);
    Pool::shared().run(scratch_, [&](Worker& w) { execute(s, w); });
    if (s.streams) unread = s.streams->error();
    s.streams.reset();
  } catch (...) {
    s.streams.reset();
    busy.clear();
    undo(s);
    throw;
  }
  spent_.seconds += std::chrono::duration<double>(Clock::now() - start).count(),
      spent_.processor += processor_seconds() - processor;
  if (s.missing < 0 && unread.empty()) return;
  busy.clear();
  undo(s);
  if (!unread.empty()) throw std::runtime_error(unread);
  throw std::runtime_error("what layer " + std::to_string(s.missing) + " needs did not arrive within " +
                           std::to_string(s.patience) + " seconds; set its flag, or allow more time");
}

void Plan::profile(bool on) {
  profiled_ = on;
  for (auto& op : operations_) op->seconds = on ? 0 : op->seconds;
}

std::vector<std::pair<std::string, double>> Plan::seconds() const {
  std::vector<std::pair<std::string, double>> sums;
  for (const auto& op : operations_) {
    const auto same = std::find_if(sums.begin(), sums.end(), [&](const auto& sum) { return sum.first == op->kind(); });
    if (same == sums.end()) sums.emplace_back(op->kind(), op->seconds);
    else same->second += op->seconds;
  }
  return sums;
}

size_t Plan::bytes() const {
  size_t panels = 0;
  for (const size_t bytes : panel_bytes_) panels += bytes;
  return bytes_ + panels + attention.bytes() + lowered.bytes() + contracted.bytes() + (mixture ? mixture->bytes() : 0) +
         scratch_ * (size_t)Pool::shared().threads();
}

}  // namespace thrifty
