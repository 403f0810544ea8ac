// What is known of the pages that one KV head's rows select among (kernels/reference/page_bounds.py): for each page the
// greatest and the least number of every channel of its keys. A page here is a part of a block of kPage slots.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "types.hpp"

namespace thrifty {

class PageBounds {
 public:
  enum Known : uint8_t { kUnknown, kBounded, kDead };  // kDead: no slot of the page is attended to

  PageBounds() = default;
  PageBounds(int dim, int page, int budget) : page_(page), budget_(budget), width_(bounds_width(dim)) {}

  bool selects() const { return page_ > 0; }
  int page() const { return page_; }               // slots
  int parts() const { return kPage / page_; }      // pages of a block
  int budget() const { return budget_; }           // pages that a row attends to, its own among them
  int room() const { return (int)known_.size(); }  // in pages
  size_t stride() const { return 2 * (size_t)width_; }

  void hold(int blocks) {
    const size_t pages = std::max((size_t)blocks * (size_t)parts(), known_.size());
    numbers_.reserve(pages * stride()), known_.reserve(pages);
    numbers_.resize(pages * stride()), known_.resize(pages, kUnknown);
  }
  void forget(int first_block, int last_block) {
    if (!selects()) return;
    const size_t first = std::min((size_t)first_block * (size_t)parts(), known_.size()),
                 last = std::min((size_t)last_block * (size_t)parts(), known_.size());
    if (first < last) std::memset(known_.data() + first, kUnknown, last - first);
  }
  bool all_known(int pages) const { return !std::memchr(known_.data(), kUnknown, (size_t)pages); }
  Known known(int page) const { return (Known)known_[(size_t)page]; }
  void set(int page, Known known) { known_[(size_t)page] = known; }
  uint16_t* of(int page) { return numbers_.data() + (size_t)page * stride(); }  // bf16 [greatest, least][width]

 private:
  int page_ = 0, budget_ = 0, width_ = 0;
  std::vector<uint16_t> numbers_;
  std::vector<uint8_t> known_;
};

}  // namespace thrifty
