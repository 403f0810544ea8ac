// The Python module. Buffers travel as addresses; thrifty/kernels/dispatch.py and thrifty/engine/plan.py check their sizes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "attend.hpp"
#include "compress_driver.hpp"
#include "gather.hpp"
#include "isa.hpp"
#include "linear.hpp"
#include "measure.hpp"
#include "mixture.hpp"
#include "plan.hpp"
#include "pool.hpp"
#include "view.hpp"
#include "witness.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace thrifty;

namespace {

nb::dict features() {
  nb::dict d;
  for (const auto& [name, present] : cpu_features()) d[name.c_str()] = present;
  return d;
}

void run_matmul(int kind, uintptr_t codes, uintptr_t scales, uintptr_t minimums, int out, int in, int group, uintptr_t x, uintptr_t y, int m, uintptr_t bias) {
  const Linear w = make_linear(kind, codes, scales, minimums, bias, out, in, group);
  if (!x || !y || m < 0) throw std::invalid_argument("matmul needs x and y, and m >= 0");
  nb::gil_scoped_release released;
  if (m > 0) matmul(w, (const float*)x, (float*)y, m);
}

void run_attend(View& view, int layer, uintptr_t q, int n, int heads, float scale, int window, float softcap, uintptr_t out, uintptr_t accumulate) {
  Attention::check(view, layer, n, heads, window);
  if (!q || !out) throw std::invalid_argument("attend needs q and out");
  View::Busy busy(view);
  nb::gil_scoped_release released;
  int stride = 0;
  for (int h = 0; h < view.kv_heads(); h++) stride = std::max(stride, view.tokens(layer, h));
  Attention attention;
  AttentionBuffers buffers;
  attention.begin();
  attention.add(view, layer, {heads, scale, softcap, window, (float*)accumulate, stride}, n, (const float*)q, (float*)out);
  attention.prepare(buffers, Pool::shared().threads());
  Pool::shared().run(Attention::scratch_bytes(view.head_dim(), heads / view.kv_heads()), [&](Worker& w) { attention.run(w); });
}

void run_witness(View& view, int layer, uintptr_t q, int n, int heads, int forced, float scale, float softcap, bool mean, const std::vector<std::tuple<int, int, int>>& judged, uintptr_t table, int stride) {
  if (!q || !table) throw std::invalid_argument("witness needs q and a table");
  std::vector<Judged> all;
  for (const auto& [sinks, low, high] : judged) all.push_back({sinks, low, high});
  nb::gil_scoped_release released;
  witness(view, layer, {n, heads, forced, scale, softcap, mean}, all, (const float*)q, (float*)table, stride);
}

void append(View& view, int layer, uintptr_t keys, uintptr_t values, int n) {
  if (!keys || !values || n < 0) throw std::invalid_argument("append needs keys and values, and n >= 0");
  std::vector<int> start;
  for (int h = 0; h < view.kv_heads(); h++) start.push_back(view.tokens(layer, h));
  view.reserve(layer, n);
  nb::gil_scoped_release released;
  const size_t dim = (size_t)view.head_dim(), heads = (size_t)view.kv_heads();
  for (size_t i = 0; i < (size_t)n; i++)
    for (size_t h = 0; h < heads; h++)
      view.write(layer, (int)h, start[h] + (int)i, (const float*)keys + (i * heads + h) * dim, (const float*)values + (i * heads + h) * dim);
}

using AdapterEntry = std::tuple<int, int, uintptr_t, uintptr_t, int, float>;  // adapter, linear, down, up, rank, scale

void add_mixture(Plan& plan, int layer, int in, uintptr_t norm, float epsilon, int scores, const std::vector<int>& gates, const std::vector<int>& ups, const std::vector<int>& downs, int active,
                 bool normalise, int activation, int sum, int out) {
  plan.add_mixture(layer, in, norm, epsilon, {scores, sum, out, gates, ups, downs, active, normalise, activation});
}

void run_plan(Plan& plan, int rows, uintptr_t tokens, uintptr_t hidden, const std::vector<View*>& views, const std::vector<int>& counts, const std::vector<uintptr_t>& rotation,
              int first_layer, int last_layer, const std::vector<int>& skip, uintptr_t queries_out, int tap_layer, uintptr_t tap, uintptr_t logit_rows, int logit_count, uintptr_t logits, uintptr_t arg_max,
              const std::vector<std::tuple<std::vector<uintptr_t>, int, size_t>>& sums, uintptr_t tree, uintptr_t ahead, const std::vector<AdapterEntry>& adapters, const std::vector<int32_t>& adapter_rows,
              Arrivals* arrivals, double patience) {
  Step s;
  s.rows = rows, s.tokens = (const int32_t*)tokens, s.hidden = (float*)hidden;
  s.views = views, s.counts = counts;
  for (View* v : views)
    if (!v) throw std::invalid_argument("a view is None");
  for (uintptr_t r : rotation) s.rotation.push_back((const float*)r);
  s.first_layer = first_layer, s.last_layer = last_layer;
  if (!skip.empty()) {
    s.skip.assign((size_t)plan.shape.layers, 0);
    for (int layer : skip) {
      if (layer < 0 || layer >= plan.shape.layers) throw std::invalid_argument("skipped layer " + std::to_string(layer) + " is outside the plan");
      s.skip[(size_t)layer] = 1;
    }
  }
  s.queries_out = (float*)queries_out, s.tap_layer = tap_layer, s.tap = (float*)tap;
  s.logit_rows = (const int32_t*)logit_rows, s.logit_count = logit_count, s.logits = (float*)logits, s.arg_max = (int32_t*)arg_max;
  if (logit_count < 0 || (logit_count > 0 && (!logit_rows || !logits))) throw std::invalid_argument("logits need their rows and a buffer");
  for (const auto& [layers, stride, row] : sums) {
    s.sums.push_back({{}, stride, row});
    for (uintptr_t layer : layers) s.sums.back().layers.push_back((float*)layer);
  }
  s.tree = (const uint64_t*)tree, s.ahead = (const int32_t*)ahead, s.arrivals = arrivals, s.patience = patience;
  std::optional<Adapters> low_rank;
  if (!adapters.empty()) {
    int count = 0;
    for (const auto& entry : adapters) count = std::max(count, std::get<0>(entry) + 1);
    low_rank.emplace(count, plan.linears);
    for (const auto& [adapter, linear, down, up, rank, scale] : adapters) low_rank->set(adapter, linear, {(const float*)down, (const float*)up, rank, scale});
    low_rank->choose(adapter_rows);
    s.adapters = &*low_rank;
  }
  nb::gil_scoped_release released;
  plan.run(s);
}

// A decode step without anything special, from plain lists: what Python does between two steps is slow, for the weights have
// just passed through the caches.
std::vector<int32_t> run_decode(Plan& plan, const std::vector<int32_t>& tokens, const std::vector<View*>& views, const std::vector<int>& counts, const std::vector<uintptr_t>& turns,
                                const std::vector<std::tuple<std::vector<uintptr_t>, int, size_t>>& sums, int layers, uintptr_t logits) {
  Step s;
  s.rows = (int)tokens.size(), s.tokens = tokens.data(), s.views = views, s.counts = counts, s.last_layer = layers;
  for (View* v : views)
    if (!v) throw std::invalid_argument("a view is None");
  for (uintptr_t turn : turns) s.turns.push_back((const float*)turn);
  for (const auto& [addresses, stride, row] : sums) {
    s.sums.push_back({{}, stride, row});
    for (uintptr_t address : addresses) s.sums.back().layers.push_back((float*)address);
  }
  std::vector<int32_t> rows(tokens.size()), best(tokens.size());
  for (size_t i = 0; i < rows.size(); i++) rows[i] = (int32_t)i;
  if (!logits) throw std::invalid_argument("a decode step needs a buffer for its logits");
  s.logit_rows = rows.data(), s.logit_count = s.rows, s.logits = (float*)logits, s.arg_max = best.data();
  nb::gil_scoped_release released;
  plan.run(s);
  return best;
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("cpu_features", &features, "Name of each instruction set extension that matters here -> present.");
  m.def("isa", [] { return std::string(kernels().name); }, "Instruction set in use: avx512, avx2 or portable.");
  m.def("force_isa", &force_isa, "name"_a, "Use this instruction set from now on ('auto': the best one). Not while a step runs.");
  m.def("isa_available", &isa_available, "name"_a);
  m.def("set_threads", [](int n) { Pool::shared().resize(n); }, "n"_a, nb::call_guard<nb::gil_scoped_release>(), "Workers of the pool, the caller among them; at most available_threads().");
  m.def("threads", [] { return Pool::shared().threads(); });
  m.def("threads_taking_part", [] { return Pool::shared().taking_part(); }, nb::call_guard<nb::gil_scoped_release>(), "Workers of the latest run: fewer than threads() while other processes take their processors.");
  m.def("available_threads", [] { return Pool::available(); });
  m.def("read_bandwidth", &read_bandwidth, "megabytes"_a = 512, "repeats"_a = 5, nb::call_guard<nb::gil_scoped_release>(), "GB/s read by all workers, best of `repeats`.");
  m.def("gemm_rate", &gemm_rate, "repeats"_a = 5, nb::call_guard<nb::gil_scoped_release>(), "1e9 operations a second of an int4 x int8 product (256 x 1024 x 1024), best of `repeats`.");
  m.def("matmul", &run_matmul, "kind"_a, "codes"_a, "scales"_a, "minimums"_a, "out"_a, "in_"_a, "group"_a, "x"_a, "y"_a, "m"_a, "bias"_a = 0);
  m.def("attend", &run_attend, "view"_a, "layer"_a, "q"_a, "n"_a, "heads"_a, "scale"_a, "window"_a, "softcap"_a, "out"_a, "accumulate"_a = 0);
  m.def("witness", &run_witness, "view"_a, "layer"_a, "q"_a, "n"_a, "heads"_a, "forced"_a, "scale"_a, "softcap"_a, "mean"_a, "judged"_a, "table"_a, "stride"_a);
  m.def("compress", [](uintptr_t from, size_t from_stride, int from_format, int from_capacity, uintptr_t to, size_t to_stride, int to_format, int to_capacity, int count, int dim, int first_page, int tokens) {
          if (from_format < 0 || from_format >= kFormats || to_format < 0 || to_format >= kFormats) throw std::invalid_argument("unknown KV format id");
          nb::gil_scoped_release released;
          return compress({from, from_stride, (Format)from_format, from_capacity}, {to, to_stride, (Format)to_format, to_capacity}, count, dim, first_page, tokens);
        }, "from_"_a, "from_stride"_a, "from_format"_a, "from_capacity"_a, "to"_a, "to_stride"_a, "to_format"_a, "to_capacity"_a, "count"_a, "dim"_a, "first_page"_a, "tokens"_a);
  m.def("gather", [](const std::vector<std::tuple<uintptr_t, int, std::vector<std::tuple<uintptr_t, int, uintptr_t, int>>>>& heads, int format, int dim) {
          std::vector<Gathering> all;
          for (const auto& [target, capacity, parts] : heads) {
            Gathering& one = all.emplace_back(Gathering{target, capacity, {}});
            for (const auto& [address, size, slots, count] : parts) one.parts.push_back({address, size, slots, count});
          }
          nb::gil_scoped_release released;
          gather(all, (Format)format, dim);
        }, "heads"_a, "format"_a, "dim"_a, "heads: (target, capacity, [(address, capacity, address of int64 slots, count)]).");

  nb::class_<View>(m, "View", "Spans that one sequence attends to, by layer and KV head. Holds addresses only: the caller keeps the memory.")
      .def(nb::init<int, int, int>(), "layers"_a, "kv_heads"_a, "head_dim"_a)
      .def("push", &View::push, "layer"_a, "head"_a, "address"_a, "tokens"_a, "capacity"_a, "format"_a, "bias_address"_a = 0, "sealed"_a = false)
      .def("exchange", &View::exchange, "layer"_a, "head"_a, "index"_a, "address"_a, "capacity"_a, "format"_a, "bias_address"_a = 0)
      .def("clear", &View::clear, "layer"_a, "head"_a = -1)
      .def("truncate", &View::truncate, "layer"_a, "tokens_dropped"_a)
      .def("drop_front", &View::drop_front, "layer"_a, "head"_a, "spans"_a)
      .def("tokens", &View::tokens, "layer"_a, "head"_a = 0)
      .def("room", &View::room, "layer"_a)
      .def("append", &append, "layer"_a, "keys"_a, "values"_a, "n"_a)
      .def_prop_ro("layers", &View::layers)
      .def_prop_ro("kv_heads", &View::kv_heads)
      .def_prop_ro("head_dim", &View::head_dim);

  nb::class_<Arrivals>(m, "Arrivals", "One flag a layer, set by any thread when what the layer needs is there; a step that is given it waits for them.")
      .def(nb::init<int>(), "layers"_a)
      .def("set", &Arrivals::set, "layer"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("clear", &Arrivals::clear, "layer"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("layers", &Arrivals::layers);

  nb::class_<Plan>(m, "Plan", "An ordered list of operations over fixed buffers; built by thrifty/engine/plan.py.")
      .def("__init__", [](Plan* p, int max_rows, int layers, int heads, int kv_heads, int head_dim) { new (p) Plan({max_rows, layers, heads, kv_heads, head_dim}); },
           "max_rows"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_dim"_a)
      .def("add_linear", &Plan::add_linear, "kind"_a, "codes"_a, "scales"_a, "minimums"_a, "bias"_a, "out"_a, "in_"_a, "group"_a)
      .def("add_buffer", &Plan::add_buffer, "width"_a)
      .def("add_embed", &Plan::add_embed, "linear"_a, "scale"_a, "out"_a)
      .def("add_project", &Plan::add_project, "layer"_a, "in_"_a, "norm"_a, "epsilon"_a, "linears"_a, "outs"_a, "add"_a)
      .def("add_gated", &Plan::add_gated, "layer"_a, "in_"_a, "norm"_a, "epsilon"_a, "gate"_a, "up"_a, "out"_a, "activation"_a)
      .def("add_rotate", &Plan::add_rotate, "layer"_a, "q"_a, "k"_a, "v"_a, "q_norm"_a, "k_norm"_a, "epsilon"_a, "rope"_a, "rope_dim"_a)
      .def("add_attend", &Plan::add_attend, "layer"_a, "q"_a, "out"_a, "scale"_a, "window"_a, "softcap"_a)
      .def("add_norm_rows", &Plan::add_norm_rows, "layer"_a, "buffers"_a, "norms"_a, "epsilon"_a)
      .def("add_rows", &Plan::add_rows, "layer"_a, "in_"_a, "norm"_a, "epsilon"_a, "gate"_a, "out"_a)
      .def("add_mixture", &add_mixture, "layer"_a, "in_"_a, "norm"_a, "epsilon"_a, "scores"_a, "gates"_a, "ups"_a, "downs"_a, "active"_a, "normalise"_a, "activation"_a, "sum"_a, "out"_a)
      .def("add_await", &Plan::add_await, "layer"_a)
      .def("add_logits", &Plan::add_logits, "in_"_a, "norm"_a, "epsilon"_a, "linear"_a, "softcap"_a)
      .def("run", &run_plan, "rows"_a, "tokens"_a, "hidden"_a, "views"_a, "counts"_a, "rotation"_a, "first_layer"_a, "last_layer"_a, "skip"_a, "queries_out"_a, "tap_layer"_a, "tap"_a,
           "logit_rows"_a, "logit_count"_a, "logits"_a, "arg_max"_a, "sums"_a = std::vector<std::tuple<std::vector<uintptr_t>, int, size_t>>(), "tree"_a = 0, "ahead"_a = 0,
           "adapters"_a = std::vector<AdapterEntry>(), "adapter_rows"_a = std::vector<int32_t>(), "arrivals"_a = nb::none(), "patience"_a = 0.0)
      .def("decode", &run_decode, "tokens"_a, "views"_a, "counts"_a, "turns"_a, "sums"_a, "layers"_a, "logits"_a)
      .def("profile", &Plan::profile, "on"_a, "Whether runs are timed by operation, from zero.")
      .def("seconds", &Plan::seconds, "Seconds by kind of operation since `profile(True)`.")
      .def_prop_ro("nbytes", &Plan::bytes);
}
