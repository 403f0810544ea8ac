#include "plan/layer_norm.hpp"

#include <cmath>
#include <stdexcept>

namespace thrifty {

namespace {

// The sum of f(0) .. f(count - 1): lane by lane, then the lanes in order.
template <class F> float lane_sum(int count, F&& f) {
  float sums[kLanes] = {}, total = 0.0f;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; j++) sums[j] += f(i + j);
  for (; i < count; i++) sums[i % kLanes] += f(i);
  for (float sum : sums) total += sum;
  return total;
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, int columns, float* out) {
  const float mean = lane_sum(columns, [&](int c) { return x[c]; }) / (float)columns;
  const float variance = lane_sum(columns, [&](int c) { return (x[c] - mean) * (x[c] - mean); }) / (float)columns;
  const float inverse = 1.0f / std::sqrt(variance + epsilon);
  for (int c = 0; c < columns; c++) out[c] = (x[c] - mean) * inverse * weight[c] + bias[c];
}

void LayerNorm::run(Plan& plan, Step& s, Worker& w) {
  const size_t width = (size_t)plan.widths[(size_t)in];
  const float* x = plan.buffer(in, s);
  float* y = plan.buffer(out, s);
  for (size_t i = (size_t)w.begin(s.rows); i < (size_t)w.end(s.rows); i++)
    layer_norm(x + i * width, weight, bias, epsilon, (int)width, y + i * width);
}

void Plan::add_layer_norm(int layer, int in, uintptr_t weight, uintptr_t bias, float epsilon, int out) {
  if (width(in) != width(out) || in == out || out == 0)
    throw std::invalid_argument("a layer norm needs two buffers of one width");
  if (!weight || !bias) throw std::invalid_argument("a layer norm needs weights and biases");
  add(std::make_unique<LayerNorm>(layer, in, (const float*)weight, (const float*)bias, epsilon, out));
}

}  // namespace thrifty
