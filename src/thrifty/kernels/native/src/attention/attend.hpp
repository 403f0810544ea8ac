// Splits the attention of one layer over many sequences into tasks for the pool.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "pool.hpp"
#include "types.hpp"
#include "attention/page_choice.hpp"
#include "attention/streams.hpp"
#include "attention/view.hpp"

namespace thrifty {

// Buffers of one step that all layers share, one after the other.
struct AttentionBuffers {
  std::vector<float> partials, finals;
  ChoiceBuffers choice;
  size_t bytes() const { return (partials.capacity() + finals.capacity()) * sizeof(float) + choice.bytes(); }
};

// How a layer's heads become queries and keys: a norm over each (null: none), then the rotation of the first 2 * half
// numbers.
struct HeadTurn {
  const float *query_norm = nullptr, *key_norm = nullptr;
  float epsilon = 0.0f;
  int half = 0;
  void apply(bool query, const float* turn, int dim, float* x) const;  // turn: cosines and sines of the row
};

// The new row of a sequence that gives one: its key and value [kv_heads, dim] and query are as the projections left
// them. Attention turns them, and writes key and value where it reads their page.
struct NewRow {
  const HeadTurn* heads = nullptr;  // null: everything is turned and written already
  const float *key = nullptr, *value = nullptr, *turn = nullptr;
};

class Attention {
 public:
  struct Call {
    int heads;
    float scale, softcap;
    int window;
    float* accumulate = nullptr;  // [heads, accumulate_stride]; null: none
    int accumulate_stride = 0;
    size_t accumulate_row = 0;
    const uint64_t* tree = nullptr;  // see AttendArgs
    const int32_t* ahead = nullptr;
    NewRow row{};
    bool decodes = false;  // rows select pages where the view says so
  };
  static size_t scratch_bytes(int dim, int group);
  static void check(const View& view, int layer, int rows, int heads, int window);  // throws std::invalid_argument

  // stages: of the heads of a layer that is streamed, which keep it until the last `run`; null: it is not.
  void begin(Streams* streams = nullptr, const std::vector<Streams::Stage>* stages = nullptr);
  // `rows` queries of one sequence whose keys and values the view already counts. q, out: [rows, heads, dim].
  void add(const View& view, int layer, const Call& call, int rows, const float* q, float* out);
  void prepare(AttentionBuffers& buffers, int workers);  // after the last add, before run
  void warm(Worker& w) const;                            // asks for the first page that the worker will read
  void run(Worker& w);                                   // on all workers; the caller puts a barrier behind it
  bool failed() const { return failed_; }                // what lies in a file did not come; the rest was left out

 private:
  struct Task {
    int sequence, head, first, last;  // rows first..last-1; last < 0: chunk `first`
  };
  // What is to be done before a sequence and head is attended to, where its newest row is still to be turned and
  // written.
  struct Fresh {
    NewRow row{};
    const View* view;
    int layer;
  };
  class Turned;
  static void read_query(const void* attention, int index, int row, int head, float* to);
  // The tasks of some heads, all of them where nothing is streamed, and what of `merges_` is theirs.
  struct Part {
    int first_head, last_head, first_task, last_task, first_merge, last_merge;
  };
  void split(int index, int workers, size_t tiles);
  void split_heads(int first, int last, int workers, size_t tiles);
  void run_part(const Part& part, Worker& w);
  bool writes(const Task& t) const;  // whether the task reads the page of a row that is still to be written
  void fetch_slot(const Task& t) const;
  void merge(const Part& part, Worker& w);
  void accumulate(const Part& part, Worker& w);

  std::vector<AttendArgs> args_;  // [sequence][kv_head]
  std::vector<Fresh> fresh_;      // [sequence]
  PageChoice choice_;
  std::vector<Task> tasks_;
  std::vector<int> merges_;  // indices of args whose chunks run apart
  std::vector<Part> parts_;
  Streams* streams_ = nullptr;
  const std::vector<Streams::Stage>* stages_ = nullptr;
  std::atomic<bool> failed_{false};
  int kv_heads_ = 1;
  bool accumulates_ = false;
  bool apart_ = false;  // tasks in even runs of neighbours, so that what a worker fetches ahead is its own; else first
                        // come, first served
  std::atomic<int> next_{0};
};

}  // namespace thrifty
