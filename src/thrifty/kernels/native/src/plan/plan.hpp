// The native program of one step: an ordered list of operations over fixed buffers, replayed by the pool.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "plan/adapters.hpp"
#include "plan/after_layer.hpp"
#include "plan/arrivals.hpp"
#include "attention/attend.hpp"
#include "attention/streams.hpp"
#include "linear/mapped_rows.hpp"
#include "linear/linear.hpp"
#include "linear/low_rank.hpp"
#include "linear/tensor_train.hpp"
#include "pool.hpp"
#include "attention/view.hpp"

namespace thrifty {

// What differs from one run to the next.
struct Step {
  int rows = 0;
  const int32_t* tokens = nullptr;      // [rows]; null: the caller filled `hidden`
  float* hidden = nullptr;              // [rows, hidden size]; null: the plan's own
  std::vector<View*> views;             // one per sequence
  std::vector<int> counts;              // rows of each sequence, in order
  std::vector<const float*> rotation;   // per rope kind: [rows, 2, half], cosines and sines
  std::vector<const float*> turns;      // or [rope kind][row]: where the row's [2, half] lies
  int first_layer = 0, last_layer = 0;  // layers first..last-1
  std::vector<uint8_t> skip;            // per layer, or empty
  float* queries_out = nullptr;         // [rows, heads, dim] of the (only) layer
  struct Sums {  // where attention adds its probabilities, see AttendArgs; layers is empty or has one entry (or null) a
                 // layer
    std::vector<float*> layers;
    int stride = 0;
    size_t row = 0;
  };
  std::vector<Sums> sums;  // one per sequence, or empty
  AfterLayer after;
  const int32_t* logit_rows = nullptr;  // [logit_count]
  int logit_count = 0;
  float* logits = nullptr;         // [logit_count, vocabulary]
  int32_t* arg_max = nullptr;      // [logit_count]
  const uint64_t* tree = nullptr;  // [rows]: bit j: the row sees row j of its own sequence; null: rows are a line
  const int32_t* ahead = nullptr;  // [rows]: later rows of its own sequence that the row sees as well
  bool decodes = false;            // its rows select pages where their views say so
  Adapters* adapters = nullptr;
  Arrivals* arrivals = nullptr;  // waited for before each layer; null: all is there
  double patience = 0;           // seconds, for each layer

  // derived
  std::vector<int> sequence_of, slot_of;  // [rows]: sequence, offset inside its rows
  std::vector<int> slots;                 // [layer, sequence, kv_stride] before this step
  int kv_stride = 0;                      // the most KV heads of a layer
  size_t slot_place(int layer, size_t sequence, int head) const {
    return ((size_t)layer * views.size() + sequence) * (size_t)kv_stride + (size_t)head;
  }
  int slots_of(int layer, size_t sequence, int head) const { return slots[slot_place(layer, sequence, head)]; }
  std::unique_ptr<Streams> streams;  // what its views have in files, null: nothing
  int missing = -1;                  // the layer that was waited for in vain
};

// The attention of one layer (of a recurrent one: of the model).
struct LayerWidths {
  int heads, kv_heads, head_dim;
};
struct PlanShape {
  int max_rows;
  std::vector<LayerWidths> widths;  // of each layer
  int layers() const { return (int)widths.size(); }
  const LayerWidths& of(int layer) const { return widths.at((size_t)layer); }
};

class Plan;
struct MixtureBuffers;
struct MixtureCall;
struct RecurrentCall;

struct Operation {
  explicit Operation(int layer) : layer(layer) {}
  virtual ~Operation() = default;
  virtual const char* kind() const = 0;  // as the profile calls it
  virtual size_t scratch(const Plan&) const { return 0; }
  virtual bool wanted(const Step&) const { return true; }  // in the layers that run
  virtual void prepare(Plan&, Step&, int) {}               // on the caller's thread, before the workers start
  virtual void run(Plan&, Step&, Worker&) = 0;             // a barrier follows
  virtual void warm(Plan&, const Step&, Worker&) {}  // few rows: asks for the bytes that the worker will read first
  virtual bool ends(const Step&) const {
    return false;
  }  // after `run`: whether the step is over; the same for all workers
  int layer;  // kEmbed, kLogits or a layer
  static constexpr int kEmbed = -1, kLogits = -2;
  Claims claims;       // of tasks, reset before each run
  double seconds = 0;  // of the runs since Plan::profile, its barrier included
};

class Plan {
 public:
  explicit Plan(PlanShape shape);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  int add_linear(const Linear& linear);
  int add_buffer(int width);  // buffer 0 is the hidden state
  void add_embed(int linear, float scale, int out, const MappedRows& file = {});
  // Optional norm (norm 0: none), then y = W x for each linear; add: y += W x.
  void add_project(int layer, int in, uintptr_t norm, float epsilon, std::vector<int> linears, std::vector<int> outs,
                   bool add);
  void add_gated(int layer, int in, uintptr_t norm, float epsilon, int gate, int up, int out, int activation);
  // Head norms (0: none), rotary embedding of q and k in place, append of k and v to the views.
  void add_rotate(int layer, int q, int k, int v, uintptr_t q_norm, uintptr_t k_norm, float epsilon, int rope,
                  int rope_dim);
  void add_attend(int layer, int q, int out, float scale, int window, float softcap);
  void add_norm_rows(int layer, std::vector<int> buffers, const std::vector<uintptr_t>& norms,
                     float epsilon);  // in place
  // out += norm(in) (norm 0: none), times the sigmoid of the buffer `gate` of width 1 (-1: none).
  void add_rows(int layer, int in, uintptr_t norm, float epsilon, int gate, int out);
  // sum = the chosen experts' weighted results for norm(in); out += sum (out -1: nothing).
  void add_mixture(int layer, int in, uintptr_t norm, float epsilon, MixtureCall call);
  // out = layer norm of in; buffer = activation(buffer); out += factor * in.
  void add_layer_norm(int layer, int in, uintptr_t weight, uintptr_t bias, float epsilon, int out);
  void add_activate(int layer, int buffer, int activation);
  void add_scaled(int layer, int in, float factor, int out);
  // out = the gated, normed result of a recurrence over the rows, whose state lies in the views (plan/recurrent.hpp).
  void add_recur(int layer, const RecurrentCall& call);
  void add_await(int layer);
  void add_logits(int in, uintptr_t norm, float epsilon, int linear, float softcap);
  void run(Step& step);
  size_t bytes() const;
  struct Spent {
    double seconds = 0, processor = 0;  // wall time, and what the calling thread took of a processor
  };
  const Spent& spent() const { return spent_; }                 // in `run` so far
  void profile(bool on);                                        // begins anew
  std::vector<std::pair<std::string, double>> seconds() const;  // by kind of operation, in the order of their first

  // for the operations
  const PlanShape shape;
  std::vector<Linear> linears;
  std::vector<int> widths;
  int width(int i) const;  // of a buffer; throws std::invalid_argument
  int logits_width() const { return logits_; }
  int rotary_width(int rope) const { return ropes_.at((size_t)rope); }  // floats of a row: cosines and sines
  int ropes() const { return (int)ropes_.size(); }
  uint8_t* panel(Reads kind) { return panels_[(size_t)kind].get(); }
  float* buffer(int i, const Step& s) { return i == 0 && s.hidden ? s.hidden : buffers_[(size_t)i].get(); }
  AttentionBuffers attention;
  Lowered lowered;                          // of linears of low rank, one operation after the other
  Contracted contracted;                    // of linears that are trains of tensors, likewise
  std::unique_ptr<MixtureBuffers> mixture;  // null: no layer has experts

 private:
  using Floats = std::unique_ptr<float[], void (*)(void*)>;
  using Bytes = std::unique_ptr<uint8_t[], void (*)(void*)>;
  void add(std::unique_ptr<Operation> operation);
  const LayerWidths& widths_of(int layer) const;  // throws std::invalid_argument
  const Linear& linear(int i) const;
  void allocate_panels();
  void check(const Step& s) const;
  void check_sums(const Step& s, size_t i) const;
  void check_views(const Step& s) const;
  void check_states(const Step& s, const View& v) const;
  void check_sight(const Step& s) const;
  void derive(Step& s) const;
  void undo(Step& s) const;
  void open_streams(Step& s) const;
  void prepare(Step& s, int workers);
  bool wanted(const Operation& op, const Step& s) const;
  void execute(Step& s, Worker& w);
  bool profiled_ = false;
  Spent spent_;

  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<Floats> buffers_;
  std::vector<Bytes> panels_;
  size_t bytes_ = 0, panel_bytes_[kReads] = {}, scratch_ = 0;
  std::vector<int> ropes_;
  std::vector<int64_t> states_;  // numbers of each layer's recurrent state, 0: it attends
  int vocabulary_ = 0, logits_ = 0, kv_stride_ = 0, window_ = 0;  // window_: the least of any layer, 0: none
};

}  // namespace thrifty
