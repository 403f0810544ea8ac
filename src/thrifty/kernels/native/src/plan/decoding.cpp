#include "plan/decoding.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check(const Plan& plan, const std::vector<Continuation*>& sequences, int steps) {
  if (sequences.empty() || steps < 1) refuse("decoding needs at least one sequence and one step");
  for (const Continuation* one : sequences) {
    if (!one || !one->view || !one->sampler) refuse("a sequence needs a view and a sampler");
    if (one->sampler->vocabulary() != plan.logits_width())
      refuse("a sampler's vocabulary of " + std::to_string(one->sampler->vocabulary()) + " differs from the plan's");
    if ((int)one->turns.size() != plan.ropes())
      refuse("a sequence needs the rotations of " + std::to_string(plan.ropes()) + " ropes");
    for (const Turns& turns : one->turns)
      if (!turns.holds(one->position) || !turns.holds(one->position + steps - 1))
        refuse("the rotations do not hold positions " + std::to_string(one->position) + " to " +
               std::to_string(one->position + steps - 1));
  }
}

// The rows of the next step.
struct Rows {
  explicit Rows(size_t count) : tokens(count), places(count), best(count) {
    for (size_t i = 0; i < count; i++) places[i] = (int32_t)i;
  }
  std::vector<int32_t> tokens, places, best;
};

void fill(Step& s, Rows& rows, const Plan& plan, const std::vector<Continuation*>& sequences) {
  for (size_t i = 0; i < sequences.size(); i++) rows.tokens[i] = sequences[i]->token;
  s.turns.clear();
  for (int rope = 0; rope < plan.ropes(); rope++)
    for (const Continuation* one : sequences) s.turns.push_back(one->turns[(size_t)rope].at(one->position));
}

// Whatever ends a decoding, samplers forget what they committed meanwhile: the caller commits what it takes.
struct Restored {
  const std::vector<Continuation*>& sequences;
  ~Restored() {
    for (Continuation* one : sequences) one->sampler->restore();
  }
};

void undo(const Plan& plan, const Step& s) {
  for (View* view : s.views)
    for (int layer = 0; layer < plan.shape.layers(); layer++) view->truncate(layer, 1);
}

enum class Outcome { kNext, kOver, kNone };  // kOver: a token ended its answer; kNone: somebody has no token to choose

// Computes the rows' logits, replaces their tokens by the next ones and advances the sequences. Where somebody has none
// to choose, and where it throws, the views are as before.
Outcome run(Plan& plan, Step& s, Rows& rows, const std::vector<Continuation*>& sequences) {
  plan.run(s);  // undoes itself
  try {
    const size_t width = (size_t)plan.logits_width();
    for (size_t i = 0; i < sequences.size(); i++)
      rows.tokens[i] = sequences[i]->sampler->choose(s.logits + i * width, rows.best[i]);
    if (*std::min_element(rows.tokens.begin(), rows.tokens.end()) < 0) {
      undo(plan, s);
      return Outcome::kNone;
    }
    bool over = false;
    for (size_t i = 0; i < sequences.size(); i++) over = sequences[i]->advance(rows.tokens[i]) || over;
    return over ? Outcome::kOver : Outcome::kNext;
  } catch (...) {
    undo(plan, s);
    throw;
  }
}

}  // namespace

bool Continuation::advance(int32_t chosen) {
  token = chosen, position++;
  sampler->commit(chosen);
  return std::binary_search(ends.begin(), ends.end(), chosen);
}

Decoded decode(Plan& plan, const std::vector<Continuation*>& sequences, const DecodingLimits& limits, float* logits,
               std::vector<Step::Sums> sums) {
  check(plan, sequences, limits.steps);
  const size_t count = sequences.size();
  Decoded decoded;
  decoded.tokens.reserve(count * (size_t)limits.steps);
  Rows rows(count);
  Step s;
  for (const Continuation* one : sequences)
    if (one->view->has_states() && limits.steps != 1) refuse("a recurrent state decodes one step at a time");
  if (!sums.empty() && limits.steps != 1) refuse("attention sums are of one step");
  s.sums = std::move(sums);
  for (Continuation* one : sequences) s.views.push_back(one->view), s.counts.push_back(1);
  s.rows = s.logit_count = (int)count, s.last_layer = plan.shape.layers();
  s.tokens = rows.tokens.data(), s.logit_rows = rows.places.data(), s.logits = logits, s.arg_max = rows.best.data();
  const Restored restored{sequences};
  const auto start = Clock::now();
  auto before = start;
  bool over = false;
  while (!over && decoded.steps < limits.steps) {
    fill(s, rows, plan, sequences);
    try {
      const Outcome outcome = run(plan, s, rows, sequences);
      if (outcome == Outcome::kNone) break;
      over = outcome == Outcome::kOver;
    } catch (...) {
      if (decoded.steps == 0) throw;
      decoded.error = std::current_exception();
      break;
    }
    decoded.tokens.insert(decoded.tokens.end(), rows.tokens.begin(), rows.tokens.end());
    decoded.steps++;
    const auto now = Clock::now();
    over = over || (limits.waiting && limits.waiting->load(std::memory_order_relaxed) != 0);
    over = over || (limits.seconds > 0 &&
                    std::chrono::duration<double>((now - start) + (now - before)).count() > limits.seconds);
    before = now;
  }
  return decoded;
}

}  // namespace thrifty
