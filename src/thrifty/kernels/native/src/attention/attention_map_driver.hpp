// Softmax probabilities of some queries over plain keys, on the shared pool.
#pragma once
#include <cstdint>

namespace thrifty {

struct AttentionMap {
  const float* queries;  // [rows][dim]
  const float* keys;     // [slots][dim]
  const int64_t* sees;   // [rows]: the row sees this many of the first slots
  const float* bias;     // [slots], added to the logits; null: none
  int rows, slots, dim;
  float scale, softcap;  // softcap 0: none
};

// out[row][slot], fp32 throughout. Throws std::invalid_argument.
void attention_map(const AttentionMap& call, float* out);

}  // namespace thrifty
