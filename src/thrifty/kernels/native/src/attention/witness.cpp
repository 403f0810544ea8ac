#include "attention/witness.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "attention/attend.hpp"
#include "isa/isa.hpp"
#include "pool.hpp"

namespace thrifty {

namespace {

void check(const View& view, int layer, const Witnesses& call, const std::vector<Judged>& judged, int stride) {
  Attention::check(view, layer, call.rows, call.heads, 0);
  const auto refuse = [](const std::string& message) { throw std::invalid_argument("witness: " + message); };
  if (judged.size() != (size_t)view.kv_heads(layer))
    refuse("judged slots of " + std::to_string(judged.size()) + " KV heads; the view has " +
           std::to_string(view.kv_heads(layer)));
  if (!view.streamed(layer).empty()) refuse("slots that lie in a file are not scored");
  if (call.forced < call.rows)
    refuse(std::to_string(call.rows) + " rows are more than the " + std::to_string(call.forced) + " forced ones");
  for (int h = 0; h < view.kv_heads(layer); h++) {
    const auto [sinks, low, high] = judged[(size_t)h];
    const int before = view.tokens(layer, h) - call.forced;
    if (sinks < 0 || sinks > low || low > high || high > before)
      refuse("sinks " + std::to_string(sinks) + " and slots " + std::to_string(low) + ".." + std::to_string(high) +
             " of KV head " + std::to_string(h) + " do not lie in this order in the " + std::to_string(before) +
             " before the forced rows");
    if (high - low > stride)
      refuse("the table has " + std::to_string(stride) + " columns for " + std::to_string(high - low) + " slots");
  }
}

struct Task {
  int head, row;
};

}  // namespace

void witness(View& view, int layer, const Witnesses& call, const std::vector<Judged>& judged, const float* q,
             float* table, int stride) {
  check(view, layer, call, judged, stride);
  View::Busy busy(view);
  const Kernels& k = kernels();
  const int kv_heads = view.kv_heads(layer), group = call.heads / kv_heads;
  const int workers = std::min(Pool::shared().threads(), kPage), step = std::min(k.attend_rows(group), kPage / workers);
  std::vector<AttendArgs> args;
  std::vector<WitnessArgs> seen;
  std::vector<Task> tasks;
  size_t most = 0;
  for (int h = 0; h < kv_heads; h++) {
    const auto& spans = view.spans(layer, h);
    const auto [sinks, low, high] = judged[(size_t)h];
    AttendArgs a{};
    a.spans = spans.data(), a.span_count = (int)spans.size(), a.slots = view.tokens(layer, h);
    a.q = q, a.n = call.rows, a.heads = call.heads, a.dim = view.head_dim(layer), a.group = group, a.kv_head = h;
    a.scale = call.scale, a.softcap = call.softcap;
    args.push_back(a), seen.push_back({call.forced, sinks, low, high, call.mean});
    most = std::max(most, (size_t)(high - low));
    if (low < high)
      for (int row = (call.rows - 1) / step * step; row >= 0; row -= step)
        tasks.push_back({h, row});  // the longest first
  }
  const size_t columns = (most + kWitnessPad + kLanes - 1) / kLanes * kLanes,
               floats = columns * (size_t)(step * group + 1);
  const auto buffer = std::make_unique_for_overwrite<float[]>(floats * (size_t)workers);
  const auto turns = std::make_unique<std::mutex[]>((size_t)kv_heads);
  std::atomic<int> next{0};
  Pool::shared().run(Attention::scratch_bytes(view.head_dim(layer), group), [&](Worker& w) {
    if (w.id >= workers) return;
    float *const scores = buffer.get() + floats * (size_t)w.id, *const found =
                                                                    scores + columns * (size_t)(step * group);
    for (int i = next.fetch_add(1); i < (int)tasks.size(); i = next.fetch_add(1)) {
      const auto [head, row] = tasks[(size_t)i];
      k.attend_witness(args[(size_t)head], seen[(size_t)head], row, std::min(row + step, call.rows), scores, columns,
                       found, w.scratch);
      const std::lock_guard held(turns[(size_t)head]);
      float* const best = table + (size_t)head * (size_t)stride;
      for (int j = 0; j < seen[(size_t)head].high - seen[(size_t)head].low; j++) best[j] = std::max(best[j], found[j]);
    }
  });
}

}  // namespace thrifty
