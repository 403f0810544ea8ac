// Decoding of several sequences for several tokens, without Python in between.
#pragma once
#include <atomic>
#include <exception>
#include <vector>

#include "plan/plan.hpp"
#include "plan/sampling.hpp"

namespace thrifty {

// Cosines and sines of consecutive positions for one rope: [count, 2 * half].
struct Turns {
  const float* first = nullptr;
  int position = 0, count = 0, width = 0;
  const float* at(int wanted) const { return first + (size_t)(wanted - position) * (size_t)width; }
  bool holds(int wanted) const { return wanted >= position && wanted < position + count; }
};

// One sequence that goes on.
struct Continuation {
  View* view = nullptr;
  int32_t token = 0;  // the newest, whose row is not computed yet
  int position = 0;   // of that row
  Sampler* sampler = nullptr;
  std::vector<int32_t> ends;    // tokens that end the answer, ascending
  std::vector<Turns> turns;     // one a rope
  bool advance(int32_t token);  // by a token that was chosen; true where it ends the answer
};

// Tokens of each step, one a sequence. The views have their rows; the samplers are as before, for the caller commits.
// Fewer steps than were asked for where a token ended an answer, the time was over or somebody waits. Where no token
// can be chosen that step is undone: Python finds out why.
struct Decoded {
  int steps = 0;
  std::vector<int32_t> tokens;  // [steps, sequences]
  std::exception_ptr error;     // of the step behind these, which is undone
};

struct DecodingLimits {
  int steps = 1;
  double seconds = 0;  // no step begins that would end later, by what the last one took; 0: no limit
  const std::atomic<int>* waiting = nullptr;  // not 0: stop after the step that runs
};

// logits: [sequences, vocabulary], the latest step's. Throws what the first step throws, with the views as before.
// sums: of one step only, or empty.
Decoded decode(Plan& plan, const std::vector<Continuation*>& sequences, const DecodingLimits& limits, float* logits,
               std::vector<Step::Sums> sums = {});

}  // namespace thrifty
