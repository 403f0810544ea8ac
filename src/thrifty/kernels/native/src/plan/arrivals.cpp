#include "plan/arrivals.hpp"

#include <chrono>
#include <stdexcept>
#include <string>

namespace thrifty {

Arrivals::Arrivals(int layers) {
  if (layers < 1) throw std::invalid_argument("arrivals need at least one layer, not " + std::to_string(layers));
  arrived_.assign((size_t)layers, 0);
}

size_t Arrivals::checked(int layer) const {
  if (layer < 0 || layer >= layers())
    throw std::invalid_argument("layer " + std::to_string(layer) + " is outside the arrivals' " +
                                std::to_string(layers()));
  return (size_t)layer;
}

void Arrivals::set(int layer) {
  {
    std::lock_guard<std::mutex> lock(guard_);
    arrived_[checked(layer)] = 1;
  }
  changed_.notify_all();
}

void Arrivals::clear(int layer) {
  std::lock_guard<std::mutex> lock(guard_);
  arrived_[checked(layer)] = 0;
}

bool Arrivals::wait(int layer, double seconds) {
  std::unique_lock<std::mutex> lock(guard_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return arrived_[(size_t)layer] != 0; });
}

}  // namespace thrifty
