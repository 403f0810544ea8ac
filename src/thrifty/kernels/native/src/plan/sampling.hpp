// Choosing a token from a row of logits, as thrifty/decoding/{sampling,drawing}.py do: they say what the numbers mean,
// and adds them up in the same order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace thrifty {

struct SamplingOptions {
  double temperature = 0;  // 0: the largest
  int64_t top_k = 0;       // 0: off
  double top_p = 1, min_p = 0;
  float repetition = 1, presence = 0, frequency = 0;
  bool gumbel = false;  // draw by noise of position and token instead of one number a position
};

// What one sample has said so far, and where its random numbers come from.
struct SamplerState {
  uint64_t seed = 0, stream = 0;
  int64_t position = 0;     // of the next token in the answer
  float* counts = nullptr;  // [vocabulary]: how often the answer has each token; null: no penalties
  uint8_t* seen = nullptr;  // [vocabulary]: whether prompt or answer have it; null: no penalties
};

// Tokens that are given, whatever the logits say: those of positions start, start + 1, ...
struct Forced {
  std::vector<int32_t> tokens;
  int64_t start = 0;
};

class Sampler {
 public:
  // biases: additions by token; absent: rows that are no token, ascending. Tokens lie inside the vocabulary: the caller
  // has checked.
  Sampler(SamplingOptions options, SamplerState state, std::vector<std::pair<int32_t, float>> biases,
          std::vector<int32_t> absent, Forced forced, int vocabulary);
  int vocabulary() const { return vocabulary_; }
  // The token for logits [vocabulary] whose arg-max is `best`; -1 where none can be chosen, and Python says why.
  int choose(const float* logits, int best);
  void commit(int token);
  void restore();  // undoes all commits since the last call
  SamplerState state;

 private:
  bool mask(const float* logits);    // into adjusted_, without the absent rows; false: they are no numbers
  bool adjust(const float* logits);  // and penalties and biases; false: no number is left
  int draw(const float* scores);
  int pick(size_t keep);  // of weights_ and, where it has any, ids_
  int race(const float* scores, size_t keep);

  SamplingOptions options_;
  std::vector<std::pair<int32_t, float>> biases_;
  std::vector<int32_t> absent_;
  Forced forced_;
  int vocabulary_;
  std::vector<float> adjusted_, work_;
  std::vector<double> weights_;
  std::vector<int32_t> ids_;
  std::vector<std::pair<int32_t, uint8_t>> committed_;  // tokens, and whether they had been seen before
};

double uniform(uint64_t seed, uint64_t stream, uint64_t position);  // [0, 1)
uint64_t noise_state(uint64_t seed, uint64_t stream, uint64_t position);
double noise_uniform(uint64_t state, uint64_t token);  // (0, 1)

}  // namespace thrifty
