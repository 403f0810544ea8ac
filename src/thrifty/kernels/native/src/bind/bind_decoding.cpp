// The part of the Python module that decodes several tokens in one call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <new>

#include "bind/array.hpp"
#include "bind/bind_plan.hpp"
#include "plan/decoding.hpp"

using namespace nanobind::literals;

namespace thrifty {

namespace {

constexpr double kSeconds = 0.1;  // that several steps may take together: a signal or a new request waits no longer

struct HeldSampler {
  Sampler sampler;
  nb::object counts, seen;
};

struct HeldContinuation {
  Continuation sequence;
  nb::object sampler, view;
  nb::list turns;
};

// How many threads wait for a turn.
struct Waiting {
  std::atomic<int> count{0};
};

void make_sampler(HeldSampler* to, const SamplingOptions& options, std::pair<uint64_t, uint64_t> source,
                  std::pair<nb::object, nb::object> said, std::vector<std::pair<int32_t, float>> biases,
                  std::vector<int32_t> absent, std::pair<std::vector<int32_t>, int64_t> forced, int vocabulary) {
  const auto& [counts, seen] = said;
  SamplerState state;
  state.seed = source.first, state.stream = source.second;
  state.counts = array_or_none<float>(counts, "counts", {vocabulary}).data,
  state.seen = (uint8_t*)array_or_none<bool>(seen, "seen", {vocabulary}).data;
  if (!state.counts != !state.seen) throw std::invalid_argument("a sampler takes counts and seen, or neither");
  new (to) HeldSampler{Sampler(options, state, std::move(biases), std::move(absent),
                               Forced{std::move(forced.first), forced.second}, vocabulary),
                       counts, seen};
}

void bind_sampler(nb::module_& m) {
  nb::class_<SamplingOptions>(m, "SamplingOptions",
                              "What thrifty/decoding/sampling_parameters.py calls SamplingParameters.")
      .def(nb::init<>())
      .def_rw("temperature", &SamplingOptions::temperature)
      .def_rw("top_k", &SamplingOptions::top_k)
      .def_rw("top_p", &SamplingOptions::top_p)
      .def_rw("min_p", &SamplingOptions::min_p)
      .def_rw("repetition_penalty", &SamplingOptions::repetition)
      .def_rw("presence_penalty", &SamplingOptions::presence)
      .def_rw("frequency_penalty", &SamplingOptions::frequency)
      .def_rw("gumbel", &SamplingOptions::gumbel);
  nb::class_<HeldSampler>(m, "Sampler", "The sampling of one sample; see thrifty/decoding/native_sampling.py.")
      .def("__init__", &make_sampler, nb::kw_only(), "options"_a, "source"_a, "said"_a, "biases"_a, "absent"_a,
           "forced"_a, "vocabulary"_a,
           "source: seed and stream. said: counts fp32 and seen bool [vocabulary], or None and None without penalties. "
           "forced: tokens that are given, and the place of the first.")
      .def(
          "choose",
          [](HeldSampler& s, nb::handle logits, int best, int64_t position) {
            s.sampler.state.position = position;
            return s.sampler.choose(array<const float>(logits, "logits", {s.sampler.vocabulary()}).data, best);
          },
          "logits"_a, "best"_a, "position"_a, "The token of one row whose arg-max is `best`; -1 where there is none.");
}

void bind_continuation(nb::module_& m) {
  nb::class_<HeldContinuation>(m, "Continuation", "One sequence that `Plan.decode` goes on with.")
      .def(
          "__init__",
          [](HeldContinuation* to, nb::object sampler, std::vector<int32_t> ends) {
            HeldSampler& held = cast<HeldSampler&>(sampler, "sampler", "a Sampler");
            new (to) HeldContinuation{};
            to->sequence.sampler = &held.sampler;
            to->sequence.ends = std::move(ends);
            to->sampler = std::move(sampler);
          },
          "sampler"_a, "ends"_a, "ends: tokens that end the answer, ascending.")
      .def(
          "begin",
          [](HeldContinuation& c, nb::object view, int token, int position, int64_t place) {
            c.sequence.view = &cast<View&>(view, "view", "a View");
            c.view = std::move(view);
            c.sequence.token = token, c.sequence.position = position;
            c.sequence.sampler->state.position = place;
          },
          "view"_a, "token"_a, "position"_a, "place"_a,
          "Before every call: the newest token, the position of its row, and the next one's place in the answer.")
      .def(
          "turn",
          [](HeldContinuation& c, int position, nb::list tables) {
            c.sequence.turns.clear();
            for (nb::handle table : tables) {
              const auto found = array<const float>(table, "rotations", {kAny, kAny});
              c.sequence.turns.push_back({found.data, position, (int)found.shape[0], (int)found.shape[1]});
            }
            c.turns = std::move(tables);
          },
          "position"_a, "tables"_a, "Rotations from a position on: fp32 [positions, dimension] a rope.");
}

// The Python exception for an error of native code; None for none.
nb::object exception_of(const std::exception_ptr& error) {
  if (!error) return nb::none();
  try {
    std::rethrow_exception(error);
  } catch (const std::bad_alloc&) { return nb::handle(PyExc_MemoryError)(); } catch (const std::invalid_argument& e) {
    return nb::handle(PyExc_ValueError)(e.what());
  } catch (const std::exception& e) { return nb::handle(PyExc_RuntimeError)(e.what()); }
}

nb::tuple run_decode(HeldPlan& plan, const std::vector<HeldContinuation*>& sequences, int steps, const Waiting* waiting,
                     nb::handle logits, const nb::list& sums) {
  std::vector<Continuation*> all;
  for (HeldContinuation* one : sequences) {
    if (!one) throw std::invalid_argument("a sequence is None");
    for (size_t i = 0; i < one->sequence.turns.size() && (int)i < plan.ropes(); i++)
      if (one->sequence.turns[i].width != plan.rotary_width((int)i))
        throw std::invalid_argument("rotations do not fit the plan's ropes");
    all.push_back(&one->sequence);
  }
  float* buffer = array<float>(logits, "logits", {(int64_t)all.size(), plan.logits_width()}).data;
  const std::vector<Step::Sums> collected = all_sums(plan, sums, std::vector<int>(all.size(), 1));
  Decoded decoded;
  {
    nb::gil_scoped_release released;
    decoded = decode(plan, all, {steps, kSeconds, waiting ? &waiting->count : nullptr}, buffer, collected);
  }
  return nb::make_tuple(std::move(decoded.tokens), exception_of(decoded.error));
}

}  // namespace

void bind_decoding(nb::module_& m, nb::class_<HeldPlan>& plan) {
  bind_sampler(m);
  bind_continuation(m);
  nb::class_<Waiting>(m, "Waiting", "How many threads wait: decoding of several tokens stops for them.")
      .def(nb::init<>())
      .def(
          "add", [](Waiting& w, int more) { w.count += more; }, "more"_a)
      .def_prop_ro("count", [](const Waiting& w) { return w.count.load(); });
  plan.def("decode", &run_decode, "sequences"_a, "steps"_a, "waiting"_a.none(), "logits"_a, "sums"_a = nb::list(),
           "Up to `steps` tokens of each sequence, as many as fit into 0.1 s: [step][sequence], flat; and the error of "
           "the step behind them, which is undone, or None. The views have the rows; nothing else moved on. "
           "sums: as of a Step, for one step.");
}

}  // namespace thrifty
