#include "plan/operations.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa/isa.hpp"

namespace thrifty {

namespace {

constexpr int kGateRows = 64;  // rows whose gate and up tiles stay in the first-level cache

// What the rows' adapters make of their normed rows, before any of them is added.
template <class F>
void lower_adapters(Step& s, const std::vector<int>& linears, const Panels& panels, int columns, Worker& w,
                    F&& row_at) {
  for (int i = w.begin(s.rows); i < w.end(s.rows); i++) {
    const float* x = row_at(i);
    float* normed = (float*)w.scratch;  // the panels' own, free again
    if (panels.norm) kernels().rms_norm(x, panels.norm, panels.epsilon, columns, normed), x = normed;
    s.adapters->lower(linears, i, x);
  }
  w.barrier();
}

// V x of linears of low rank, and all sites but the last of trains of tensors, in their places of the list.
void lower_ranks(Plan& plan, const std::vector<int>& linears, int rows, const Panels::Ready& ready, Worker& w) {
  if (!plan.lowered.bytes() && !plan.contracted.bytes()) return;
  std::vector<const Linear*> used;
  for (int i : linears) used.push_back(&plan.linears[(size_t)i]);
  plan.lowered.lower(used, rows, w, [&](const Linear& down) { return ready.of(down); });
  plan.contracted.contract(used, rows, w, [&](const Linear& train) { return ready.of(train); });
}

}  // namespace

size_t Panels::scratch(int columns) const {
  const Linear by_codes = reader_of(Reads::codes, columns), by_pairs = reader_of(Reads::pairs, columns);
  const size_t rows = (codes ? align64(panel_bytes(by_codes, 1)) : 0) +
                      (pairs ? align64(panel_bytes(by_pairs, 1)) : 0) +
                      (tokens ? align64(panel_bytes(by_tokens(columns), 1)) : 0);
  return (plain ? 1 + kPrivateRows : 1) * padded_floats(columns) + rows;
}

void Embed::run(Plan& plan, Step& s, Worker& w) {
  const Linear& weights = plan.linears[(size_t)linear];
  float* hidden = plan.buffer(out, s);
  std::vector<uint8_t> buffer;
  for (int i = w.begin(s.rows); i < w.end(s.rows); i++) {
    float* row = hidden + (size_t)i * (size_t)weights.in;
    if (!file.row(weights, s.tokens[i], row, buffer)) linear_row(weights, s.tokens[i], row);
    if (scale != 1.0f)
      for (int c = 0; c < weights.in; c++) row[c] *= scale;
  }
}

size_t Project::scratch(const Plan& plan) const { return panels.scratch(plan.widths[(size_t)in]); }

void Project::run(Plan& plan, Step& s, Worker& w) {
  const int columns = plan.widths[(size_t)in];
  const float* x = plan.buffer(in, s);
  const auto row_at = [&](int i) { return x + (size_t)i * (size_t)columns; };
  const bool packed = before && before->packs(plan, s);
  const auto ready = packed ? Panels::Ready{(const uint8_t*)x, nullptr, nullptr, nullptr}
                            : panels.prepare(plan, w, s.rows, columns, row_at);
  const bool adapted = s.adapters && s.adapters->touches(linears);
  if (adapted) lower_adapters(s, linears, panels, columns, w, row_at);
  lower_ranks(plan, linears, s.rows, ready, w);
  int tiles = 0;
  for (int i : linears) tiles += plan.linears[(size_t)i].tiles();
  const TileTasks tasks(plan.linears[(size_t)linears[0]], s.rows, tiles, w.count);
  tasks.each(w, claims, [&](int row0, int row1, int tile0, int tile1) {
    int first = 0;  // the tiles of all linears are numbered one after the other
    for (size_t i = 0; i < linears.size(); i++) {
      const Linear& weights = plan.linears[(size_t)linears[i]];
      const int from = std::max(tile0 - first, 0), to = std::min(tile1 - first, weights.tiles());
      const size_t stride = (size_t)weights.out;
      first += weights.tiles();
      if (from >= to) continue;
      float* y = plan.buffer(outs[i], s) + (size_t)row0 * stride + (size_t)from * kLanes;
      plan.contracted.multiply(weights, (int)i, from, to, ready.of(weights), row0, row1, y, stride, add);
      plan.lowered.raise(weights, (int)i, from, to, row0, row1, y, stride);
      if (adapted)
        s.adapters->raise(linears[i], (int)i, row0, row1, from * kLanes, std::min(to * kLanes, weights.out), y, stride);
    }
  });
}

void Project::warm(Plan& plan, const Step& s, Worker& w) {
  int tiles = 0;
  for (int i : linears) tiles += plan.linears[(size_t)i].tiles();
  int tile = TileTasks(plan.linears[(size_t)linears[0]], s.rows, tiles, w.count).first_tile(w);
  for (int i : linears) {
    const Linear& weights = plan.linears[(size_t)i];
    if (tile < weights.tiles()) return fetch_tile(weights, tile);
    tile -= weights.tiles();
  }
}

size_t Gated::scratch(const Plan& plan) const {
  return panels.scratch(plan.widths[(size_t)in]) + kGateRows * 4 * kLanes * sizeof(float);
}

bool Gated::packs(const Plan& plan, const Step& s) const {
  if (!reader || (s.adapters && s.adapters->touches(reader->linears))) return false;
  const Linear& first = plan.linears[(size_t)reader->linears[0]];
  return panel_bytes(first, s.rows) <= (size_t)plan.widths[(size_t)out] * (size_t)plan.shape.max_rows * sizeof(float);
}

void Gated::run(Plan& plan, Step& s, Worker& w) {
  const int columns = plan.widths[(size_t)in], width = plan.widths[(size_t)out];
  const float* x = plan.buffer(in, s);
  float* y = plan.buffer(out, s);
  const bool packed = packs(plan, s);
  const Linear* read_by = packed ? &plan.linears[(size_t)reader->linears[0]] : nullptr;
  const auto row_at = [&](int i) { return x + (size_t)i * (size_t)columns; };
  const auto ready = panels.prepare(plan, w, s.rows, columns, row_at);
  const std::vector<int> linears{gate, up};
  const bool adapted = s.adapters && s.adapters->touches(linears);
  if (adapted) lower_adapters(s, linears, panels, columns, w, row_at);
  lower_ranks(plan, linears, s.rows, ready, w);
  const Linear &a = plan.linears[(size_t)gate], &b = plan.linears[(size_t)up];
  float* gates = (float*)(w.scratch + panels.scratch(columns));
  float* ups = gates + kGateRows * 2 * kLanes;
  TileTasks(a, s.rows, a.tiles(), w.count).each(w, claims, [&](int row0, int row1, int tile0, int tile1) {
    for (int tile = tile0; tile < tile1; tile += 2) {
      const int end = std::min(tile + 2, tile1), lanes = std::min(width - tile * kLanes, (end - tile) * kLanes);
      for (int row = row0; row < row1; row += kGateRows) {
        const int stop = std::min(row + kGateRows, row1);
        plan.contracted.multiply(a, 0, tile, end, ready.of(a), row, stop, gates, 2 * kLanes, false);
        plan.contracted.multiply(b, 1, tile, end, ready.of(b), row, stop, ups, 2 * kLanes, false);
        plan.lowered.raise(a, 0, tile, end, row, stop, gates, 2 * kLanes);
        plan.lowered.raise(b, 1, tile, end, row, stop, ups, 2 * kLanes);
        if (adapted) {
          s.adapters->raise(gate, 0, row, stop, tile * kLanes, tile * kLanes + lanes, gates, 2 * kLanes);
          s.adapters->raise(up, 1, row, stop, tile * kLanes, tile * kLanes + lanes, ups, 2 * kLanes);
        }
        for (int i = row; i < stop; i++) {
          float* made = gates + (i - row) * 2 * kLanes;
          kernels().gate(made, ups + (i - row) * 2 * kLanes,
                         packed ? made : y + (size_t)i * (size_t)width + (size_t)tile * kLanes, lanes, activation);
          if (packed) place_block(*read_by, made, lanes, i, tile / 2, (uint8_t*)y);
        }
      }
    }
  });
}

void Gated::warm(Plan& plan, const Step& s, Worker& w) {
  const Linear &a = plan.linears[(size_t)gate], &b = plan.linears[(size_t)up];
  const int tile = TileTasks(a, s.rows, a.tiles(), w.count).first_tile(w);
  if (tile < a.tiles()) fetch_tile(a, tile), fetch_tile(b, tile);
}

const float* RotateAppend::turn_of(const Step& s, int row) const {
  if (s.turns.empty()) return s.rotation[(size_t)rope] + (size_t)row * 2 * (size_t)heads.half;
  return s.turns[(size_t)rope * (size_t)s.rows + (size_t)row];
}

void RotateAppend::run(Plan& plan, Step& s, Worker& w) {
  const auto [query_heads, kv_heads, dim] = plan.shape.of(layer);
  const int units = query_heads + kv_heads;
  float *queries = plan.buffer(q, s), *keys = plan.buffer(k, s);
  const float* values = plan.buffer(v, s);
  // Few rows: heads in turn, so that all workers append; many: whole rows, so that each page has one writer at a time.
  const bool few = s.rows <= kPrivateRows;
  const int begin = few ? w.id : w.begin(s.rows) * units, end = few ? s.rows * units : w.end(s.rows) * units;
  for (int u = begin; u < end; u += few ? w.count : 1) {
    const int row = u / units, unit = u % units;
    const bool query = unit < query_heads;
    float* x = query ? queries + ((size_t)row * (size_t)query_heads + (size_t)unit) * (size_t)dim
                     : keys + ((size_t)row * (size_t)kv_heads + (size_t)(unit - query_heads)) * (size_t)dim;
    heads.apply(query, turn_of(s, row), dim, x);
    if (query) {
      if (s.queries_out)
        std::memcpy(s.queries_out + ((size_t)row * (size_t)query_heads + (size_t)unit) * (size_t)dim, x,
                    (size_t)dim * sizeof(float));
      continue;
    }
    const int head = unit - query_heads, sequence = s.sequence_of[(size_t)row];
    const int slot = s.slots_of(layer, (size_t)sequence, head) + s.slot_of[(size_t)row];
    s.views[(size_t)sequence]->write(layer, head, slot, x,
                                     values + ((size_t)row * (size_t)kv_heads + (size_t)head) * (size_t)dim);
  }
}

void Attend::prepare(Plan& plan, Step& s, int workers) {
  attention.begin(s.streams.get(), s.streams ? s.streams->stages(layer) : nullptr);
  const LayerWidths& own_widths = plan.shape.of(layer);
  const size_t width = (size_t)own_widths.heads * (size_t)own_widths.head_dim,
               kept = (size_t)own_widths.kv_heads * (size_t)own_widths.head_dim;
  const bool turns = before && RotateAppend::one_by_one(s);
  size_t row = 0;
  for (size_t i = 0; i < s.views.size(); row += (size_t)s.counts[i], i++) {
    Attention::Call own = call;
    if (!s.sums.empty() && !s.sums[i].layers.empty())
      own.accumulate = s.sums[i].layers[(size_t)layer], own.accumulate_stride = s.sums[i].stride,
      own.accumulate_row = s.sums[i].row;
    if (s.tree) own.tree = s.tree + row;
    if (s.ahead) own.ahead = s.ahead + row;
    own.decodes = s.decodes;
    if (turns)
      own.row = {&before->heads, plan.buffer(before->k, s) + row * kept, plan.buffer(before->v, s) + row * kept,
                 before->turn_of(s, (int)row)};
    attention.add(*s.views[i], layer, own, s.counts[i], plan.buffer(q, s) + row * width,
                  plan.buffer(out, s) + row * width);
  }
  attention.prepare(plan.attention, workers);
}

void NormRows::run(Plan& plan, Step& s, Worker& w) {
  const int units = s.rows * (int)buffers.size();
  for (int u = w.begin(units); u < w.end(units); u++) {
    const size_t i = (size_t)u % buffers.size();
    const int width = plan.widths[(size_t)buffers[i]];
    float* x = plan.buffer(buffers[i], s) + (size_t)u / buffers.size() * (size_t)width;
    kernels().rms_norm(x, norms[i], epsilon, width, x);
  }
}

void AddRows::run(Plan& plan, Step& s, Worker& w) {
  const int width = plan.widths[(size_t)in];
  const bool few = s.rows <= kPrivateRows;
  const int from = few ? w.begin(width) : 0, count = (few ? w.end(width) : width) - from;
  float* scaled = (float*)w.scratch;
  for (int i = few ? 0 : w.begin(s.rows), end = few ? s.rows : w.end(s.rows); i < end; i++) {
    const float* x = plan.buffer(in, s) + (size_t)i * (size_t)width;
    if (norm) kernels().rms_norm(x, norm, epsilon, width, scaled), x = scaled;
    if (gate >= 0) {
      const float factor = 1.0f / (1.0f + std::exp(-plan.buffer(gate, s)[i]));
      for (int c = from; c < from + count; c++) scaled[c] = factor * x[c];
      x = scaled;
    }
    kernels().add(plan.buffer(out, s) + (size_t)i * (size_t)width + from, x + from, count);
  }
}

void Await::run(Plan&, Step& s, Worker& w) {
  if (w.id == 0 && !s.arrivals->wait(layer, s.patience)) s.missing = layer;
  w.barrier();
}

size_t Logits::scratch(const Plan& plan) const { return panels.scratch(plan.widths[(size_t)in]); }

void Logits::warm(Plan& plan, const Step& s, Worker& w) {
  const Linear& weights = plan.linears[(size_t)linear];
  const int tile = TileTasks(weights, s.logit_count, weights.tiles(), w.count).first_tile(w);
  if (tile < weights.tiles()) fetch_tile(weights, tile);
}

void Logits::run(Plan& plan, Step& s, Worker& w) {
  const Linear& weights = plan.linears[(size_t)linear];
  const float* x = plan.buffer(in, s);
  for (int start = 0; start < s.logit_count; start += plan.shape.max_rows) {  // as many as the panels hold
    const int rows = std::min(plan.shape.max_rows, s.logit_count - start);
    const auto ready = panels.prepare(plan, w, rows, weights.in,
                                      [&](int i) { return x + (size_t)s.logit_rows[start + i] * (size_t)weights.in; });
    const size_t stride = (size_t)weights.out;
    lower_ranks(plan, {linear}, rows, ready, w);
    float* y = s.logits + (size_t)start * stride;
    TileTasks(weights, rows, weights.tiles(), w.count).each(w, claims, [&](int row0, int row1, int tile0, int tile1) {
      const int from = tile0 * kLanes, count = std::min(tile1 * kLanes, weights.out) - from;
      float* to = y + (size_t)row0 * stride + from;
      plan.contracted.multiply(weights, 0, tile0, tile1, ready.of(weights), row0, row1, to, stride, false);
      plan.lowered.raise(weights, 0, tile0, tile1, row0, row1, to, stride);
      for (int i = row0; softcap > 0.0f && i < row1; i++) kernels().cap(y + (size_t)i * stride + from, softcap, count);
    });
    w.barrier();
    for (int i = w.begin(rows); s.arg_max && i < w.end(rows); i++)
      s.arg_max[start + i] = kernels().arg_max(y + (size_t)i * stride, weights.out);
    if (start + rows < s.logit_count) {  // the next part claims its tasks anew
      w.barrier();
      if (w.id == 0) claims.reset(w.count);
      w.barrier();
    }
  }
}

}  // namespace thrifty
