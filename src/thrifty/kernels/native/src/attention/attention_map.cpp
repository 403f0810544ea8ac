#include "attention/attention_map_driver.hpp"

#include <memory>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"
#include "pool.hpp"

namespace thrifty {

void attention_map(const AttentionMap& call, float* out) {
  constexpr float kLog2e = 1.44269504088896341f;
  for (int row = 0; row < call.rows; row++)
    if (call.sees[row] < 1 || call.sees[row] > call.slots)
      throw std::invalid_argument("row " + std::to_string(row) + " sees " + std::to_string(call.sees[row]) +
                                  " slots; there are " + std::to_string(call.slots) + ", and it must see one at least");
  if (call.rows == 0) return;
  const Kernels& k = kernels();
  const size_t dim = (size_t)call.dim;
  const auto queries = std::make_unique_for_overwrite<float[]>((size_t)call.rows * dim);
  k.map_queries(call.queries, call.rows, call.dim, call.scale * kLog2e, queries.get());
  const MapArgs a{queries.get(), call.keys, call.bias, call.sees, out, call.rows, call.slots, call.dim, call.softcap};
  const int pages = (call.slots + kPage - 1) / kPage;
  Pool::shared().run((dim + kMapScratchRows) * kPage * sizeof(float), [&](Worker& w) {
    for (int page = w.begin(pages); page < w.end(pages); page++) k.map_scores(a, page * kPage, (float*)w.scratch);
    w.barrier();
    for (int row = w.begin(a.rows); row < w.end(a.rows); row++) k.map_softmax(a, row);
  });
}

}  // namespace thrifty
