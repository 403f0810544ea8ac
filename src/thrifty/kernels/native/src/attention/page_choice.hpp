// Which pages each query head of a step attends to, where the view of its sequence selects.
#pragma once
#include <cstddef>
#include <vector>

#include "pool.hpp"
#include "types.hpp"
#include "attention/view.hpp"

namespace thrifty {

// Buffers of one step that all layers share, one after the other.
struct ChoiceBuffers {
  std::vector<uint64_t> seen;
  std::vector<float> scores;
  std::vector<int32_t> order;
  size_t bytes() const { return seen.capacity() * sizeof(uint64_t) + (scores.capacity() + order.capacity()) * 4; }
};

// A row attends to its own page and what follows it, and of the pages before to those that its query can score highest
// (the paper's upper bound), the first of equal ones: PageBounds::budget of them with its own. Its own is the page of
// the step's first row; the caller cuts a step where a page begins.
class PageChoice {
 public:
  // Reads a query [dim] as attention will: row and head of the arguments, turned where it still has to be.
  using Query = void (*)(const void* source, int index, int row, int head, float* to);

  void begin() { choices_.clear(); }
  bool empty() const { return choices_.empty(); }
  // `index`: of the arguments, of one KV head. Nothing is added where all pages are within the budget. Throws
  // std::invalid_argument where the view holds no room for the bounds.
  void add(const View& view, int layer, const AttendArgs& a, int index);
  void prepare(ChoiceBuffers& buffers, std::vector<AttendArgs>& args);
  // On all workers; they may read `args.seen` behind it.
  void run(Worker& w, const std::vector<AttendArgs>& args, Query query, const void* source);

 private:
  struct Choice {
    int index;
    PageBounds* bounds;
    int pages;       // to choose among, from the first
    int open_block;  // the block of the row's own page
    size_t seen, scores;
  };
  void bound(const Choice& c, const AttendArgs& a, Worker& w) const;
  void choose(const Choice& c, const AttendArgs& a, int row, const float* query) const;

  std::vector<Choice> choices_;
  ChoiceBuffers* buffers_ = nullptr;
  bool unknown_ = false;  // whether some bounds are still to be found
};

}  // namespace thrifty
