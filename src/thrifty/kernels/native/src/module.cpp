// The Python module. Buffers travel as addresses; thrifty/kernels/dispatch.py and thrifty/engine/plan.py check their sizes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bind.hpp"
#include "linear.hpp"
#include "mixture.hpp"
#include "plan.hpp"
#include "view.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace thrifty;

namespace {

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
  bind_kernels(m);
  bind_view(m);

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
