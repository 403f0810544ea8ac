// The plan's part of the Python module.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>

#include "bind/array.hpp"
#include "bind/bind.hpp"
#include "bind/bind_linear.hpp"
#include "bind/bind_plan.hpp"
#include "bind/bind_rows.hpp"
#include "plan/mixture.hpp"
#include "plan/plan.hpp"
#include "plan/recurrent.hpp"

using namespace nanobind::literals;

namespace thrifty {

namespace {

// What Python calls Step: the fields of a step as arrays and lists. They are checked when the plan runs it.
struct StepFields {
  nb::object tokens = nb::none(), hidden = nb::none();
  std::vector<View*> views;
  std::vector<int> counts;
  nb::list rotation;
  int first_layer = 0, last_layer = 0;
  std::vector<int> skip;
  nb::object queries_out = nb::none(), tap_rows = nb::none();
  nb::list taps, residual;
  nb::object logit_rows = nb::none(), logits = nb::none(), arg_max = nb::none();
  nb::list sums;
  nb::object tree = nb::none(), ahead = nb::none();
  nb::list adapters;
  std::vector<int32_t> adapter_rows;
  Arrivals* arrivals = nullptr;
  double patience = 0;
};

// The address of a norm's weights, which the plan keeps; None: 0.
uintptr_t norm_of(HeldPlan& plan, nb::handle given, int64_t width) {
  const auto found = array_or_none<const float>(given, "norm", {width});
  if (found) plan.alive.push_back(nb::borrow(given));
  return (uintptr_t)found.data;
}

int add_linear(HeldPlan& plan, nb::object given) {
  const Linear& linear = cast<const BoundLinear&>(given, "linear", "a Linear").linear;
  plan.alive.push_back(std::move(given));
  return plan.add_linear(linear);
}

// Where attention adds its probabilities: (layers that collect, sums [layers, heads, slots] or [rows, layers, heads,
// slots]).
Step::Sums sums_of(const Plan& plan, nb::handle given, int rows) {
  Step::Sums sums;
  if (given.is_none()) return sums;
  const auto [layers, table] = cast<std::pair<std::vector<int>, nb::object>>(given, "sums", "None or (layers, array)");
  const int64_t count = (int64_t)layers.size();
  int heads = 0;  // the most of these layers
  for (int layer : layers) {
    if (layer < 0 || layer >= plan.shape.layers())
      throw std::invalid_argument("attention sums of layer " + std::to_string(layer) +
                                  " are outside the plan's layers");
    heads = std::max(heads, plan.shape.of(layer).heads);
  }
  const bool apart = axes(table) == 4;
  const auto found = apart ? array<float>(table, "sums", {kAny, count, heads, kAny}, true)
                           : array<float>(table, "sums", {count, heads, kAny});
  if (apart && found.shape[0] < rows)
    throw std::invalid_argument("attention sums of " + std::to_string(found.shape[0]) + " rows are too few for " +
                                std::to_string(rows));
  const int64_t slots = found.shape[apart ? 3 : 2];
  sums.layers.assign((size_t)plan.shape.layers(), nullptr);
  for (int64_t i = 0; i < count; i++) sums.layers[(size_t)layers[(size_t)i]] = found.data + i * heads * slots;
  sums.stride = (int)slots, sums.row = apart ? (size_t)found.stride : 0;
  return sums;
}

std::vector<View*> present(const std::vector<View*>& views) {
  for (View* view : views)
    if (!view) throw std::invalid_argument("a view is None");
  return views;
}

std::vector<uint8_t> skipped(const Plan& plan, const std::vector<int>& layers) {
  std::vector<uint8_t> skip(layers.empty() ? 0 : (size_t)plan.shape.layers(), 0);
  for (int layer : layers) {
    if (layer < 0 || layer >= plan.shape.layers())
      throw std::invalid_argument("skipped layer " + std::to_string(layer) + " is outside the plan");
    skip[(size_t)layer] = 1;
  }
  return skip;
}

// Rows and their states; the number of rows follows from whichever is there.
void set_rows(Step& s, const Plan& plan, const StepFields& fields) {
  const int64_t width = plan.width(0);
  const auto tokens = array_or_none<const int32_t>(fields.tokens, "token_ids", {kAny});
  const auto hidden =
      array_or_none<float>(fields.hidden, "hidden", {fields.tokens.is_none() ? kAny : tokens.shape[0], width});
  if (fields.tokens.is_none() && fields.hidden.is_none())
    throw std::invalid_argument("a step needs tokens or hidden states");
  s.rows = (int)(fields.tokens.is_none() ? hidden.shape[0] : tokens.shape[0]), s.tokens = tokens.data,
  s.hidden = hidden.data;
}

void set_outputs(Step& s, const Plan& plan, const StepFields& fields) {
  const int64_t rows = s.rows;
  if (!fields.queries_out.is_none()) {
    if (fields.first_layer < 0 || fields.first_layer >= plan.shape.layers())
      throw std::invalid_argument("queries_out needs the layer whose queries it takes");
    const LayerWidths& own = plan.shape.of(fields.first_layer);
    s.queries_out = array<float>(fields.queries_out, "queries_out", {rows, own.heads, own.head_dim}).data;
  }
  s.after = after_of(plan, {fields.taps, fields.tap_rows, fields.residual}, fields.counts.size(), rows);
  const auto wanted = array_or_none<const int32_t>(fields.logit_rows, "logit_rows", {kAny});
  s.logit_rows = wanted.data, s.logit_count = (int)wanted.shape[0];
  if (s.logit_count == 0) return;
  s.logits = array<float>(fields.logits, "logits", {s.logit_count, plan.logits_width()}).data;
  s.arg_max = array_or_none<int32_t>(fields.arg_max, "arg_max", {s.logit_count}).data;
}

void run_plan(HeldPlan& plan, const StepFields& fields) {
  Step s;
  set_rows(s, plan, fields);
  set_outputs(s, plan, fields);
  s.views = present(fields.views), s.counts = fields.counts;
  for (size_t i = 0; i < nb::len(fields.rotation); i++)
    s.rotation.push_back(array<const float>(fields.rotation[i], "rotation", {s.rows, plan.rotary_width((int)i)}).data);
  s.first_layer = fields.first_layer, s.last_layer = fields.last_layer, s.skip = skipped(plan, fields.skip);
  s.sums = all_sums(plan, fields.sums, s.counts);
  s.tree = (const uint64_t*)array_or_none<const int64_t>(fields.tree, "tree", {s.rows}).data;
  s.ahead = array_or_none<const int32_t>(fields.ahead, "ahead", {s.rows}).data;
  std::optional<Adapters> adapters = adapters_of(plan, fields.adapters, fields.adapter_rows);
  s.adapters = adapters ? &*adapters : nullptr, s.arrivals = fields.arrivals, s.patience = fields.patience;
  nb::gil_scoped_release released;
  plan.run(s);
}

void bind_step(nb::module_& m) {
  nb::class_<StepFields>(
      m, "Step",
      "What differs from one run of a plan to the next; thrifty/engine/plan/options.py says what each field is.")
      .def(nb::init<>())
      .def_rw("tokens", &StepFields::tokens, nb::arg().none(), "int32 [rows], or None where `hidden` is given.")
      .def_rw("hidden", &StepFields::hidden, nb::arg().none(),
              "fp32 [rows, hidden size], changed in place; None: the plan's own.")
      .def_rw("views", &StepFields::views, "One View a sequence.")
      .def_rw("counts", &StepFields::counts, "Rows of each sequence, in order.")
      .def_rw("rotation", &StepFields::rotation, "One fp32 [rows, dimension] a rope.")
      .def_rw("first_layer", &StepFields::first_layer)
      .def_rw("last_layer", &StepFields::last_layer, "Layers first_layer..last_layer-1 run.")
      .def_rw("skip", &StepFields::skip, "Layers that pass the hidden state through.")
      .def_rw("queries_out", &StepFields::queries_out, nb::arg().none(),
              "fp32 [rows, heads, head_dim] of the only layer, or None.")
      .def_rw("taps", &StepFields::taps,
              "(layer, fp32 [tapped rows, hidden size]) each, filled with the state behind the layer.")
      .def_rw("tap_rows", &StepFields::tap_rows, nb::arg().none(), "int32 [tapped rows], or None: every row.")
      .def_rw("residual", &StepFields::residual,
              "(layer, [fp32 [hidden size] or None a sequence]) each, added to the state behind the layer.")
      .def_rw("logit_rows", &StepFields::logit_rows, nb::arg().none(), "int32 [r], or None.")
      .def_rw("logits", &StepFields::logits, nb::arg().none(), "fp32 [r, vocabulary].")
      .def_rw("arg_max", &StepFields::arg_max, nb::arg().none(), "int32 [r], or None.")
      .def_rw("sums", &StepFields::sums, "Empty, or one (layers, fp32 array) or None a view.")
      .def_rw("tree", &StepFields::tree, nb::arg().none(), "int64 [rows], or None.")
      .def_rw("ahead", &StepFields::ahead, nb::arg().none(), "int32 [rows], or None.")
      .def_rw("adapters", &StepFields::adapters, "One AdapterTable each.")
      .def_rw("adapter_rows", &StepFields::adapter_rows, "Each row's adapter, or -1.")
      .def_rw("arrivals", &StepFields::arrivals, nb::arg().none(), nb::rv_policy::reference)
      .def_rw("patience", &StepFields::patience, "Seconds.");
}

void add_mixture(HeldPlan& plan, int layer, int source, nb::object norm, float epsilon, int scores,
                 std::vector<int> gates, std::vector<int> ups, std::vector<int> downs, int active, bool normalise,
                 int activation, int sum, int out) {
  plan.add_mixture(
      layer, source, norm_of(plan, norm, plan.width(source)), epsilon,
      {scores, sum, out, std::move(gates), std::move(ups), std::move(downs), active, normalise, activation});
}

void add_recur(HeldPlan& plan, int layer, int query, int key, int value, int decay, int gate, int out, nb::object norm,
               float epsilon, float scale, float temperature, int heads, int key_dim, int value_dim) {
  const auto weights = (const float*)norm_of(plan, norm, value_dim);
  plan.add_recur(
      layer, {query, key, value, decay, gate, out, weights, epsilon, scale, temperature, heads, key_dim, value_dim});
}

// The calls that build a plan; Python names every argument.
void bind_building(nb::class_<HeldPlan>& plan) {
  plan.def("add_linear", &add_linear, "linear"_a, "A native Linear; the plan keeps it.")
      .def(
          "add_buffer", [](HeldPlan& p, int width) { return p.add_buffer(width); }, "width"_a)
      .def(
          "add_embed",
          [](HeldPlan& p, int linear, float scale, int out, int descriptor, nb::object content) {
            const auto mapped = array_or_none<const uint8_t>(content, "content", {kAny});
            if (mapped) p.alive.push_back(content);
            p.add_embed(linear, scale, out, MappedRows(descriptor, mapped.data, (size_t)mapped.shape[0]));
          },
          "linear"_a, "scale"_a, "out"_a, "descriptor"_a = -1, "content"_a.none() = nb::none(),
          "descriptor: of the file that `content`, uint8 [bytes], maps, where rows are to be read from it.")
      .def(
          "add_project",
          [](HeldPlan& p, int layer, int source, nb::object norm, float epsilon, std::vector<int> linears,
             std::vector<int> outs, bool add) {
            p.add_project(layer, source, norm_of(p, norm, p.width(source)), epsilon, std::move(linears),
                          std::move(outs), add);
          },
          nb::kw_only(), "layer"_a, "source"_a, "norm"_a.none() = nb::none(), "epsilon"_a = 0.0f, "linears"_a, "outs"_a,
          "add"_a = false)
      .def(
          "add_gated",
          [](HeldPlan& p, int layer, int source, nb::object norm, float epsilon, int gate, int up, int out,
             int activation) {
            p.add_gated(layer, source, norm_of(p, norm, p.width(source)), epsilon, gate, up, out, activation);
          },
          nb::kw_only(), "layer"_a, "source"_a, "norm"_a.none(), "epsilon"_a, "gate"_a, "up"_a, "out"_a, "activation"_a)
      .def(
          "add_rotate",
          [](HeldPlan& p, int layer, int query, int key, int value, nb::object query_norm, nb::object key_norm,
             float epsilon, int rope, int dimension) {
            if (layer < 0 || layer >= p.shape.layers())
              throw std::invalid_argument("layer " + std::to_string(layer) + " is outside the plan");
            const int64_t width = p.shape.of(layer).head_dim;
            p.add_rotate(layer, query, key, value, norm_of(p, query_norm, width), norm_of(p, key_norm, width), epsilon,
                         rope, dimension);
          },
          nb::kw_only(), "layer"_a, "query"_a, "key"_a, "value"_a, "query_norm"_a.none(), "key_norm"_a.none(),
          "epsilon"_a, "rope"_a, "dimension"_a)
      .def(
          "add_attend",
          [](HeldPlan& p, int layer, int query, int out, float scale, int window, float softcap) {
            p.add_attend(layer, query, out, scale, window, softcap);
          },
          nb::kw_only(), "layer"_a, "query"_a, "out"_a, "scale"_a, "window"_a, "softcap"_a)
      .def(
          "add_norm_rows",
          [](HeldPlan& p, int layer, std::vector<int> buffers, nb::list norms, float epsilon) {
            std::vector<uintptr_t> weights;
            for (size_t i = 0; i < nb::len(norms); i++)
              weights.push_back(norm_of(p, norms[i], i < buffers.size() ? p.width(buffers[i]) : kAny));
            p.add_norm_rows(layer, std::move(buffers), weights, epsilon);
          },
          nb::kw_only(), "layer"_a, "buffers"_a, "norms"_a, "epsilon"_a)
      .def(
          "add_rows",
          [](HeldPlan& p, int layer, int source, nb::object norm, float epsilon, int gate, int out) {
            p.add_rows(layer, source, norm_of(p, norm, p.width(source)), epsilon, gate, out);
          },
          nb::kw_only(), "layer"_a, "source"_a, "norm"_a.none() = nb::none(), "epsilon"_a = 0.0f, "gate"_a = -1,
          "out"_a)
      .def("add_mixture", &add_mixture, nb::kw_only(), "layer"_a, "source"_a, "norm"_a.none(), "epsilon"_a, "scores"_a,
           "gates"_a, "ups"_a, "downs"_a, "active"_a, "normalise"_a, "activation"_a, "sum"_a, "out"_a)
      .def("add_recur", &add_recur, nb::kw_only(), "layer"_a, "query"_a, "key"_a, "value"_a, "decay"_a, "gate"_a,
           "out"_a, "norm"_a, "epsilon"_a, "scale"_a, "temperature"_a, "heads"_a, "key_dim"_a, "value_dim"_a)
      .def(
          "add_layer_norm",
          [](HeldPlan& p, int layer, int source, nb::object norm, nb::object bias, float epsilon, int out) {
            const int64_t width = p.width(source);
            p.add_layer_norm(layer, source, norm_of(p, norm, width), norm_of(p, bias, width), epsilon, out);
          },
          nb::kw_only(), "layer"_a, "source"_a, "norm"_a, "bias"_a, "epsilon"_a, "out"_a)
      .def(
          "add_activate",
          [](HeldPlan& p, int layer, int buffer, int activation) { p.add_activate(layer, buffer, activation); },
          nb::kw_only(), "layer"_a, "buffer"_a, "activation"_a)
      .def(
          "add_scaled",
          [](HeldPlan& p, int layer, int source, float factor, int out) { p.add_scaled(layer, source, factor, out); },
          nb::kw_only(), "layer"_a, "source"_a, "factor"_a, "out"_a)
      .def(
          "add_await", [](HeldPlan& p, int layer) { p.add_await(layer); }, "layer"_a)
      .def(
          "add_logits",
          [](HeldPlan& p, int source, nb::object norm, float epsilon, int linear, float softcap) {
            p.add_logits(source, norm_of(p, norm, p.width(source)), epsilon, linear, softcap);
          },
          nb::kw_only(), "source"_a, "norm"_a.none(), "epsilon"_a, "linear"_a, "softcap"_a);
}

}  // namespace

std::vector<Step::Sums> all_sums(const Plan& plan, const nb::list& given, const std::vector<int>& counts) {
  std::vector<Step::Sums> sums;
  for (size_t i = 0; i < nb::len(given); i++)
    sums.push_back(sums_of(plan, given[i], i < counts.size() ? counts[i] : 0));
  return sums;
}

void bind_plan(nb::module_& m) {
  nb::class_<Arrivals>(
      m, "Arrivals",
      "One flag a layer, set by any thread when what the layer needs is there; a step that is given it waits for them.")
      .def(nb::init<int>(), "layers"_a)
      .def("set", &Arrivals::set, "layer"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("clear", &Arrivals::clear, "layer"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("layers", &Arrivals::layers);
  bind_step(m);
  nb::class_<HeldPlan> plan(m, "Plan",
                            "An ordered list of operations over fixed buffers; built by thrifty/engine/plan/build.py.");
  plan.def(
      "__init__",
      [](HeldPlan* p, int max_rows, int layers, int heads, int kv_heads, int head_dim) {
        new (p) HeldPlan(PlanShape{max_rows, {(size_t)std::max(layers, 0), LayerWidths{heads, kv_heads, head_dim}}});
      },
      nb::kw_only(), "max_rows"_a, "layers"_a, "heads"_a, "kv_heads"_a, "head_dim"_a);
  plan.def(
      "__init__",
      [](HeldPlan* p, int max_rows, const std::vector<std::array<int, 3>>& widths) {
        PlanShape shape{max_rows, {}};
        for (const auto& [heads, kv_heads, head_dim] : widths) shape.widths.push_back({heads, kv_heads, head_dim});
        new (p) HeldPlan(std::move(shape));
      },
      nb::kw_only(), "max_rows"_a, "widths"_a, "widths: heads, KV heads and head_dim of each layer.");
  bind_adapters(m);
  bind_building(plan);
  bind_decoding(m, plan);
  plan.def("run", &run_plan, "step"_a)
      .def(
          "profile", [](HeldPlan& p, bool on) { p.profile(on); }, "on"_a,
          "Whether runs are timed by operation, from zero.")
      .def(
          "seconds", [](HeldPlan& p) { return p.seconds(); }, "Seconds by kind of operation since `profile(True)`.")
      .def_prop_ro(
          "spent", [](HeldPlan& p) { return std::pair(p.spent().seconds, p.spent().processor); },
          "Seconds spent in steps so far: wall time, and what the calling thread took of a processor.")
      .def_prop_ro("nbytes", [](HeldPlan& p) { return p.bytes(); });
}

}  // namespace thrifty
