// What one sequence attends to: for each layer and KV head an ordered list of spans, the last of them open for
// appending.
#pragma once
#include <atomic>
#include <vector>

#include "types.hpp"
#include "attention/page_bounds.hpp"
#include "attention/streamed.hpp"

namespace thrifty {

// The recurrent state of one layer in two buffers of one size: as it was committed, and as the rows since then left it.
struct LayerState {
  float *committed = nullptr, *newest = nullptr;
  int64_t numbers = 0;  // of a buffer; 0: the layer has no state
  int rows = 0;         // since it was committed; 0: `newest` holds nothing
  bool lost = false;    // some of those rows were dropped, which no buffer can follow
};

class View {
 public:
  View(int layers, int kv_heads, int head_dim);
  View(std::vector<int> kv_heads, std::vector<int> head_dims);  // of each layer
  int layers() const { return (int)kv_heads_.size(); }
  int kv_heads(int layer) const { return kv_heads_[checked(layer)]; }
  int head_dim(int layer) const { return head_dims_[checked(layer)]; }

  // A slab of `capacity` slots of which the first `tokens` are in use. Sealed spans are never appended to.
  void push(int layer, int head, uintptr_t address, int tokens, int capacity, int format, uintptr_t bias, bool sealed);
  void exchange(int layer, int head, int index, uintptr_t address, int capacity, int format,
                uintptr_t bias);                    // other bytes for the tokens of a span that is sealed or full
  void clear(int layer, int head);                  // head -1: all heads
  void truncate(int layer, int tokens);             // drops slots from the end, of every head
  void drop_front(int layer, int head, int spans);  // forgets leading spans; chunk boundaries stay where they were
  int tokens(int layer, int head) const;
  int room(int layer) const;  // slots that append can still take (least over heads)

  void reserve(int layer, int count);  // counts the slots as used; the caller then writes them; checks room
  void write(int layer, int head, int slot, const float* key, const float* value) const;
  void fetch(int layer, int head, int slot) const;  // asks for the lines that `write` will write
  const std::vector<Span>& spans(int layer, int head) const { return spans_[at(layer, head)]; }
  int base_pages(int layer, int head) const { return base_pages_[at(layer, head)]; }

  // A layer that has a state instead of slots. `tokens` are its rows since the last commit, its room has no end, and
  // `truncate` drops all of these rows or leaves a state that is lost until the rest is dropped, too.
  void set_state(int layer, LayerState state);
  const LayerState* state(int layer) const;  // null: none
  bool has_states() const { return !states_.empty(); }
  void commit_states(int layer);  // layer -1: of all layers

  // From here on, rows that decode attend in a layer to `budget` pages of `page` slots each, their own among them.
  // Before a step, `hold_bounds` makes room for the bounds of so many blocks a head; it never makes less.
  void select_pages(int layer, int page, int budget);
  void hold_bounds(int blocks);
  int most_blocks() const;                        // of a head in a layer that selects, with those still to be filled
  PageBounds* bounds(int layer, int head) const;  // null: the layer does not select. A step may add what is not known

  // Spans of these heads of a layer lie in a file, and their addresses in a buffer that a step fills; see
  // attention/streams.hpp. Groups come in the order of their heads, behind the spans; `clear` of all heads forgets a
  // layer's.
  void stream(int layer, StreamGroup group);
  const std::vector<StreamGroup>& streamed(int layer) const;
  bool streams() const { return streams_; }
  void count_read(int64_t bytes) const { read_ += bytes; }
  int64_t bytes_read() const { return read_.load(); }

  struct Busy {  // held while a step reads the view: changes are refused
    explicit Busy(View& v) : view(v) { view.users_++; }
    ~Busy() { view.users_--; }
    Busy(const Busy&) = delete;
    View& view;
  };

 private:
  size_t checked(int layer) const;
  size_t at(int layer, int head) const;
  const Span& span_of(int layer, int head, int slot) const;
  static Span make_span(uintptr_t address, int tokens, int capacity, int format, uintptr_t bias, bool sealed);
  void check_idle() const;
  void renumber(std::vector<Span>& list, size_t from);
  size_t first_open(const std::vector<Span>& list) const;
  void forget_bounds(int layer, int head, int first_block, int last_block = 1 << 30);

  std::vector<int> kv_heads_, head_dims_;  // by layer
  std::vector<size_t> first_;              // by layer, where its heads' lists begin
  std::vector<std::vector<Span>> spans_;
  std::vector<int> base_pages_;
  std::vector<LayerState> states_;                  // by layer, or empty
  mutable std::vector<PageBounds> bounds_;          // as spans_, or empty
  std::vector<std::vector<StreamGroup>> streamed_;  // by layer
  bool streams_ = false;                            // whether any layer has some
  mutable std::atomic<int64_t> read_{0};
  std::atomic<int> users_{0};
};

}  // namespace thrifty
