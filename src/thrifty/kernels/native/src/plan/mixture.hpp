// A mixture of experts in one operation: the most probable experts of each row, then the rows of each expert together.
#pragma once
#include "linear/panels.hpp"

namespace thrifty {

// Sizes and linears of one layer's mixture.
struct MixtureCall {
  int scores, sum,
      out;  // buffers: the router's result [count], the experts' sum, and what it is added to (-1: nothing)
  std::vector<int> gates, ups, downs;
  int active;
  bool normalise;  // the taken probabilities sum to 1
  int activation;
  int count() const { return (int)gates.size(); }
};

// Rows that share an expert, in panels of their own; `first` is their first row there.
struct ExpertGroup {
  int expert, first, rows;
};

// Experts that fit the buffers together, in ascending order.
struct ExpertBatch {
  int first_expert, last_expert, first_group, last_group, first_entry, last_entry;
};

// Work space that all layers share, one after the other. An entry is one row's part in one expert.
struct MixtureBuffers {
  struct Panel {
    std::vector<uint8_t> codes, pairs, plain, tokens;
    std::vector<uint8_t>& kind(const Linear& w);
    void grow(const Linear& w, int rows);
    // `lanes` values from lane 0 of a tile on, as columns of a row, as the linear reads them.
    void store(const Linear& w, const float* values, int lanes, int row, int tile);
    size_t bytes() const { return codes.size() + pairs.size() + plain.size() + tokens.size(); }
    uint8_t* of(const Linear& w) { return kind(w).data(); }
  };
  void grow(int max_rows, const std::vector<Linear>& linears, const MixtureCall& call);
  // Of a linear in slot `slot`: panels of a group, from its first row on.
  uint8_t* lowered_rows(int slot, const ExpertGroup& g, bool apart) {
    return lowered.panels(slot, apart ? g.first : g.first / kPanel);
  }
  size_t bytes() const;

  int capacity = 0;                 // panel rows of one batch
  Panel in, inner;                  // gathered activations; gate times up
  Lowered lowered;                  // of experts of low rank: gate and up, or down
  std::vector<float> parts;         // [capacity, hidden]
  std::vector<float> weights;       // [row, rank]
  std::vector<int> chosen, places;  // [row, rank]: expert, ascending; panel row of the entry
  std::vector<int> entries, ends;   // entries (row * active + rank) by expert; where each expert's end
  std::vector<ExpertGroup> groups;
  std::vector<ExpertBatch> batches;
};

struct Mixture final : Operation {
  const char* kind() const override { return "experts"; }
  Mixture(int layer, int in, Panels panels, MixtureCall call)
      : Operation(layer), in(in), panels(panels), call(std::move(call)) {}
  size_t scratch(const Plan&) const override;
  void run(Plan&, Step&, Worker&) override;

  int in;
  Panels panels;
  MixtureCall call;

 private:
  void choose(MixtureBuffers& m, const float* scores, int row, float* probabilities) const;
  void group(MixtureBuffers& m, int rows);
  void gather(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, const Panels::Ready& ready, Worker& w) const;
  void expand(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, const Panels::Ready* private_rows, Worker& w);
  bool inner_waits(const Plan& plan) const;
  void quantise_inner(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, Worker& w) const;
  template <class F>
  void lower(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b,
             std::initializer_list<const std::vector<int>*> parts, bool apart, Worker& w, F&& of) const;
  void reduce(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, bool apart, Worker& w);
  void combine(Plan& plan, Step& s, MixtureBuffers& m, const ExpertBatch& b, Worker& w) const;
  std::atomic<int> next_expand_{0}, next_reduce_{0};
};

}  // namespace thrifty
