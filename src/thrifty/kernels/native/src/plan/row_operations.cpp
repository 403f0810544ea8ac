#include "plan/row_operations.hpp"

#include <algorithm>
#include <stdexcept>

#include "isa/isa.hpp"

namespace thrifty {

namespace {

constexpr int kPiece = 256;  // numbers that a worker takes at once, whatever row they belong to; a multiple of kLanes

// Calls work(first, count) for the worker's share of all numbers of the rows.
template <class F> void pieces(const Worker& w, size_t numbers, F&& work) {
  const size_t total = (numbers + kPiece - 1) / kPiece;
  for (size_t i = (size_t)w.begin((int)total); i < (size_t)w.end((int)total); i++)
    work(i * kPiece, std::min<size_t>(kPiece, numbers - i * kPiece));
}

}  // namespace

void Activate::run(Plan& plan, Step& s, Worker& w) {
  float ones[kPiece];
  std::fill(ones, ones + kPiece, 1.0f);
  float* x = plan.buffer(buffer, s);
  pieces(w, (size_t)s.rows * (size_t)plan.widths[(size_t)buffer],
         [&](size_t first, size_t count) { kernels().gate(x + first, ones, x + first, (int)count, activation); });
}

void AddScaled::run(Plan& plan, Step& s, Worker& w) {
  const float* x = plan.buffer(in, s);
  float* y = plan.buffer(out, s);
  pieces(w, (size_t)s.rows * (size_t)plan.widths[(size_t)in], [&](size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++) y[i] += factor * x[i];
  });
}

void Plan::add_activate(int layer, int buffer, int activation) {
  if (width(buffer) < 1 || buffer == 0) throw std::invalid_argument("an activation needs a buffer of its own");
  if (activation != 0 && activation != 1)
    throw std::invalid_argument("activation must be 0 (SiLU) or 1 (GELU, tanh form)");
  add(std::make_unique<Activate>(layer, buffer, activation));
}

void Plan::add_scaled(int layer, int in, float factor, int out) {
  if (width(in) != width(out) || in == out) throw std::invalid_argument("add_scaled needs two buffers of one width");
  add(std::make_unique<AddScaled>(layer, in, factor, out));
}

}  // namespace thrifty
