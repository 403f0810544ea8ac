// Linear layers, packed or of plain fp32 rows: checks, activation panels, tiling over the pool, row lookup.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>
#include <vector>

#include "pool.hpp"
#include "types.hpp"

namespace thrifty {

// The name of a layout, as Python has it: "int4", "q4_k" and so on.
const char* name_of(Layout layout);
Layout layout_of(const std::string& name);  // throws std::invalid_argument

void check_linear(Layout layout, int out, int in, int group);  // throws std::invalid_argument
// Of bit planes: whether the kernels take activations of so many bits.
void check_planes(Layout layout, int in, int group, int activation_bits);  // throws std::invalid_argument
Linear make_linear(Layout layout, uintptr_t codes, uintptr_t scales, uintptr_t minimums, uintptr_t bias, int out,
                   int in, int group);  // throws std::invalid_argument

size_t tile_bytes(const Linear& linear);  // of the codes of kLanes rows
// Without weights: what stands for all that read such rows of activations. threshold: of tokens, 0: no outliers.
Linear reader_of(Reads kind, int columns, float threshold = 0);

size_t panel_bytes(const Linear& linear, int rows);  // rows rounded up to whole panels

// One row of activations (already normed) into place `row` of a panel.
void place_row(const Linear& linear, const float* x, int row, uint8_t* panel);

// One block of 32 columns of a row, `columns` of them there, into its place; for linears that take quantised
// activations.
void place_block(const Linear& linear, const float* x, int columns, int row, int block, uint8_t* panel);

// Row `from` of one panel of activations as row `to` of another.
void copy_row(const Linear& linear, const uint8_t* panel, int from, uint8_t* target, int to);
// Where row `row` of a panel starts, for kernels that then take it as their first.
const uint8_t* row_in_panel(const Linear& linear, const uint8_t* panel, int row);

// a . b, added in sixteen interleaved sums, whatever the instruction set.
float dot(const float* a, const float* b, int count);

// A row of the weight matrix in fp32 (embedding lookup): out[in].
void linear_row(const Linear& linear, int row, float* out);

// Rows whose panels stay in the second-level cache while all tiles pass over them; a multiple of kPanel.
int rows_per_pass(const Linear& linear);

// Asks for the first bytes of a tile.
void fetch_tile(const Linear& linear, int tile);

// Counters of claimed tasks, one for each worker's part of the work.
class Claims {
 public:
  void reset(int workers) {
    if ((int)parts_.size() < workers) parts_ = std::vector<Part>((size_t)workers);
    for (Part& part : parts_) part.next.store(0, std::memory_order_relaxed);
  }
  // Calls work(task) for the tasks 0..total-1 of a part that nobody has claimed.
  template <class F> void each(int part, int total, F&& work) {
    auto& next = parts_[(size_t)part].next;
    for (int task = next.fetch_add(1, std::memory_order_relaxed); task < total;
         task = next.fetch_add(1, std::memory_order_relaxed))
      work(task);
  }

 private:
  struct alignas(64) Part {
    std::atomic<int> next{0};
  };
  std::vector<Part> parts_;
};

// Tasks of (row block, group of tiles). Many rows: first come, first served. Few: all rows at once, and each worker has
// an even share of neighbouring tiles, of which the others take some only when their own are done: what it fetches
// ahead is its own.
struct TileTasks {
  TileTasks(const Linear& linear, int rows, int tiles, int workers)
      : rows(rows),
        row_step(rows <= kFew ? rows : rows_per_pass(linear)),
        tiles(tiles),
        workers(workers),
        tile_step(kTiles) {
    // Of bit planes each task makes planes of its rows again, so there are as few as workers.
    const bool planes = traits(linear.layout).family == Family::planes;
    if (rows > kFew && planes) tile_step = std::max(kTiles, (tiles + workers - 1) / workers);
    if (rows > kFew) return;
    const int pieces = planes ? workers : kShare * workers;
    tile_step = std::clamp((tiles + pieces - 1) / pieces, 1, planes ? tiles : kMost);
    tile_step += tile_step % 2;
  }
  // Calls work(row0, row1, tile0, tile1) for the tasks that this worker claims.
  template <class F> void each(const Worker& w, Claims& claims, F&& work) const {
    if (rows <= kFew) {
      for (int i = 0; i < w.count; i++) {
        const int owner = (w.id + i) % w.count, begin = first(owner), end = first(owner + 1);
        claims.each(owner, (end - begin + tile_step - 1) / tile_step, [&](int task) {
          const int tile = begin + task * tile_step;
          work(0, rows, tile, std::min(tile + tile_step, end));
        });
      }
      return;
    }
    const int across = (tiles + tile_step - 1) / tile_step, total = across * ((rows + row_step - 1) / row_step);
    claims.each(0, total, [&](int i) {
      const int row = i / across * row_step, tile = i % across * tile_step;
      work(row, std::min(row + row_step, rows), tile, std::min(tile + tile_step, tiles));
    });
  }
  // The tile that this worker begins with, where rows are few; pairs of tiles stay together.
  int first_tile(const Worker& w) const { return first(w.id); }
  static constexpr int kFew = 16, kTiles = 4, kShare = 4, kMost = 64;
  int rows, row_step, tiles, workers, tile_step;

 private:
  int first(int worker) const { return std::min(tiles, (int)((int64_t)((tiles + 1) / 2) * worker / workers) * 2); }
};

// y[m, out] = x[m, in] W^T + bias, on the shared pool.
void matmul(const Linear& linear, const float* x, float* y, int m);

}  // namespace thrifty
