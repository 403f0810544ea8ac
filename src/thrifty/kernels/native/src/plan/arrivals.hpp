// Flags that other threads set when what a layer needs (its weights, its segments) has arrived.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace thrifty {

class Arrivals {
 public:
  explicit Arrivals(int layers);  // none has arrived; throws std::invalid_argument
  int layers() const { return (int)arrived_.size(); }
  void set(int layer);
  void clear(int layer);
  // Blocks until the layer's flag is set. False after `seconds` without it.
  bool wait(int layer, double seconds);

 private:
  size_t checked(int layer) const;
  std::mutex guard_;
  std::condition_variable changed_;
  std::vector<uint8_t> arrived_;
};

}  // namespace thrifty
