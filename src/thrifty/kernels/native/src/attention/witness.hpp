// Which slots of the KV cache some rows attend to most: what a policy learns that forces rows behind a prompt.
#pragma once
#include <vector>

#include "types.hpp"
#include "attention/view.hpp"

namespace thrifty {

// One KV head: its rows see slots 0..sinks-1, low..high-1 and the forced ones; low..high-1 are judged.
struct Judged {
  int sinks, low, high;
};

struct Witnesses {
  int rows, heads;
  int forced;  // newest slots, those of the rows among them
  float scale, softcap;
  bool mean;  // over a KV head's query heads; else the greatest of them
};

// table[head][i] = max(itself, the greatest softmax probability that the newest `rows` rows give slot low + i of the
// head). q: [rows, heads, dim]; table: [kv_heads, stride]. Holds scores of at most kPage rows of one KV head at a time,
// for all workers together. Throws std::invalid_argument.
void witness(View& view, int layer, const Witnesses& call, const std::vector<Judged>& judged, const float* q,
             float* table, int stride);

}  // namespace thrifty
