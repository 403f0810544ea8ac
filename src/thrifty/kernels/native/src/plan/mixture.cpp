#include "plan/mixture.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thrifty {

namespace {

constexpr int kGroupRows = 64;  // rows whose gate and up tiles stay in the first-level cache
constexpr int kPair = 2 * kLanes;
static_assert(kPair == kBlockColumns);  // two tiles of gate and up are one block of activations for down

// Tasks of (group, tiles): enough for all workers where there are few groups.
struct GroupTasks {
  GroupTasks(int groups, int tiles, int workers) : groups(groups), tiles(tiles) {
    const int wanted = std::max(1, (TileTasks::kShare * workers + groups - 1) / std::max(groups, 1));
    step = std::max(2, (tiles / wanted + 1) / 2 * 2);
  }
  template <class F> void each(std::atomic<int>& next, F&& work) const {
    const int across = (tiles + step - 1) / step;
    for (int i = next.fetch_add(1, std::memory_order_relaxed); i < groups * across;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      const int tile = i % across * step;
      work(i / across, tile, std::min(tile + step, tiles));
    }
  }
  int groups, tiles, step;
};

}  // namespace

std::vector<uint8_t>& MixtureBuffers::Panel::kind(const Linear& w) {
  switch (w.reads()) {
    case Reads::plain:
      return plain;
    case Reads::pairs:
      return pairs;
    case Reads::tokens:
      return tokens;
    default:
      return codes;
  }
}

void MixtureBuffers::Panel::grow(const Linear& w, int rows) {
  std::vector<uint8_t>& bytes = kind(w);
  bytes.resize(std::max(bytes.size(), panel_bytes(w, rows)));
}

void MixtureBuffers::Panel::store(const Linear& w, const float* values, int lanes, int row, int tile) {
  if (w.reads() == Reads::tokens) {  // a scale takes the whole row, see `quantise_inner`
    float* whole = (float*)plain.data() + (size_t)row * (size_t)w.in;
    std::memcpy(whole + tile * kLanes, values, (size_t)lanes * sizeof(float));
    return;
  }
  uint8_t* to = const_cast<uint8_t*>(row_in_panel(w, of(w), row));
  if (w.reads() == Reads::plain) std::memcpy((float*)to + tile * kLanes, values, (size_t)lanes * sizeof(float));
  else if (w.reads() == Reads::pairs)
    kernels().to_pairs(values, lanes, (uint32_t*)to + (size_t)(tile / 2) * kLanes * kPanel);
  else kernels().quantise(values, lanes, (ActivationBlock*)to + (size_t)(tile / 2) * kPanel);
}

void MixtureBuffers::grow(int max_rows, const std::vector<Linear>& linears, const MixtureCall& call) {
  const int count = call.count(), whole = (max_rows + kPanel - 1) / kPanel * kPanel;
  capacity = std::max(capacity, whole + kPanel * count);
  // Rows of their own have a panel each: see `lowered_rows`.
  const int lowered_room = std::max(capacity, kPanel * kPrivateRows * call.active);
  const auto add = [&](Panel& panel, int i, int slots) {
    const Linear& w = linears[(size_t)i];
    for (const Linear* own : {&w, w.low ? &w.low->down : &w}) {
      panel.grow(*own, capacity);
      if (own->reads() == Reads::tokens)
        panel.grow(reader_of(Reads::plain, own->in), capacity);  // until a row is whole
    }
    lowered.grow(w, slots, lowered_room);
  };
  for (int i : call.gates) add(in, i, 2);
  for (int i : call.ups) add(in, i, 2);
  for (int i : call.downs) add(inner, i, 1);
  parts.resize(std::max(parts.size(), (size_t)capacity * (size_t)linears[(size_t)call.downs[0]].out));
  const size_t all = std::max(weights.size(), (size_t)max_rows * (size_t)call.active);
  weights.resize(all), chosen.resize(all), places.resize(all), entries.resize(all);
  ends.resize(std::max(ends.size(), (size_t)count));
  groups.reserve(all), batches.reserve((size_t)count);
}

size_t MixtureBuffers::bytes() const {
  return in.bytes() + inner.bytes() + lowered.bytes() +
         (parts.size() + 4 * weights.size() + ends.size()) * sizeof(float) + groups.capacity() * sizeof(ExpertGroup) +
         batches.capacity() * sizeof(ExpertBatch);
}

size_t Mixture::scratch(const Plan& plan) const {
  return panels.scratch(plan.widths[(size_t)in]) + (2 * kGroupRows + 1) * kPair * sizeof(float) +
         (size_t)call.count() * sizeof(float);
}

// Softmax over all experts; the most probable ones, of equals the first. Ordered by number, so that a row's parts are
// added in that order whoever else is in the step.
void Mixture::choose(MixtureBuffers& m, const float* scores, int row, float* probabilities) const {
  const int count = call.count(), active = call.active;
  const float top = *std::max_element(scores, scores + count);
  float sum = 0.0f, taken = 0.0f;
  for (int e = 0; e < count; e++) sum += probabilities[e] = std::exp(scores[e] - top);
  int* chosen = m.chosen.data() + (size_t)row * (size_t)active;
  float* weights = m.weights.data() + (size_t)row * (size_t)active;
  for (int rank = 0; rank < active; rank++) {
    int best = -1;
    for (int e = 0; e < count; e++)
      if (std::find(chosen, chosen + rank, e) == chosen + rank && (best < 0 || probabilities[e] > probabilities[best]))
        best = e;
    chosen[rank] = best, taken += probabilities[best];
  }
  std::sort(chosen, chosen + active);
  for (int rank = 0; rank < active; rank++)
    weights[rank] = probabilities[chosen[rank]] / (call.normalise ? taken : sum);
}

// Sorts the entries by expert and lays them into panels, batch after batch. With few rows each entry is a group.
void Mixture::group(MixtureBuffers& m, int rows) {
  const int count = call.count(), all = rows * call.active;
  std::fill(m.ends.begin(), m.ends.begin() + count, 0);
  for (int i = 0; i < all; i++) m.ends[(size_t)m.chosen[(size_t)i]]++;
  for (int e = 1; e < count; e++) m.ends[(size_t)e] += m.ends[(size_t)e - 1];
  for (int i = all - 1; i >= 0; i--) m.entries[(size_t)--m.ends[(size_t)m.chosen[(size_t)i]]] = i;
  m.groups.clear(), m.batches.clear();
  const bool apart = rows <= kPrivateRows;
  int used = 0;
  m.batches.push_back({0, count, 0, 0, 0, all});
  for (int e = 0; e < count; e++) {  // `ends` are the starts by now
    const int from = m.ends[(size_t)e], to = e + 1 < count ? m.ends[(size_t)e + 1] : all;
    const int wanted = apart ? to - from : (to - from + kPanel - 1) / kPanel * kPanel;
    if (used + wanted > m.capacity) {
      m.batches.back().last_expert = e, m.batches.back().last_group = (int)m.groups.size(),
      m.batches.back().last_entry = from;
      m.batches.push_back({e, count, (int)m.groups.size(), 0, from, all});
      used = 0;
    }
    for (int i = from; i < to; i++) m.places[(size_t)m.entries[(size_t)i]] = used + i - from;
    for (int i = from; i < to; i += apart ? 1 : kGroupRows)
      m.groups.push_back({e, used + i - from, apart ? 1 : std::min(kGroupRows, to - i)});
    used += wanted;
  }
  m.batches.back().last_group = (int)m.groups.size();
  next_expand_.store(0, std::memory_order_relaxed), next_reduce_.store(0, std::memory_order_relaxed);
}

void Mixture::gather(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, const Panels::Ready& ready,
                     Worker& w) const {
  const int columns = plan.widths[(size_t)in];
  const Linear by_codes = reader_of(Reads::codes, columns), by_pairs = reader_of(Reads::pairs, columns),
               by_floats = reader_of(Reads::plain, columns);
  const int total = b.last_entry - b.first_entry;
  for (int i = b.first_entry + w.begin(total); i < b.first_entry + w.end(total); i++) {
    const int entry = m.entries[(size_t)i], row = entry / call.active, place = m.places[(size_t)entry];
    if (panels.codes) copy_row(by_codes, ready.codes, row, m.in.codes.data(), place);
    if (panels.pairs) copy_row(by_pairs, ready.pairs, row, m.in.pairs.data(), place);
    if (panels.plain) copy_row(by_floats, ready.plain, row, m.in.plain.data(), place);
    if (panels.tokens) copy_row(panels.by_tokens(columns), ready.tokens, row, m.in.tokens.data(), place);
  }
}

// V x of experts of low rank, `parts` of each group's expert in slots 0 and 1; `of(V, group, entry)` are the group's
// rows as V reads them. Two barriers; nothing where no expert has a V.
template <class F>
void Mixture::lower(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b,
                    std::initializer_list<const std::vector<int>*> parts, bool apart, Worker& w, F&& of) const {
  if (!m.lowered.bytes()) return;
  const auto each = [&](auto&& work) {  // a worker has the same groups both times
    int task = 0;
    for (int index = b.first_group; index < b.last_group; index++) {
      const ExpertGroup& g = m.groups[(size_t)index];
      int slot = 0;
      for (const std::vector<int>* part : parts) {
        const LowRank* low = plan.linears[(size_t)(*part)[(size_t)g.expert]].low;
        if (low && task++ % w.count == w.id)
          work(g, *low, slot, m.entries[(size_t)(b.first_entry + index - b.first_group)]);
        slot++;
      }
    }
  };
  each([&](const ExpertGroup& g, const LowRank& low, int slot, int entry) {
    kernels().tiles(low.down, 0, low.down.tiles(), of(low.down, g, entry), 0, g.rows, m.lowered.value(slot, g.first),
                    m.lowered.stride(), false);
    for (int i = 0; i < g.rows; i++)
      place_row(low.up, m.lowered.value(slot, g.first + i), i, m.lowered_rows(slot, g, apart));
  });
  w.barrier();
}

// activation(gate x) * up x, two tiles at a time, straight into the panels that down reads.
void Mixture::expand(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, const Panels::Ready* private_rows,
                     Worker& w) {
  float* gates = (float*)(w.scratch + panels.scratch(plan.widths[(size_t)in]));
  float *ups = gates + kGroupRows * kPair, *product = ups + kGroupRows * kPair;
  const int tiles = plan.linears[(size_t)call.gates[0]].tiles();
  const bool apart = private_rows != nullptr;
  const auto rows_of = [&](const Linear& x, const ExpertGroup& g, int entry) {  // private rows: an entry is a group
    return private_rows ? row_in_panel(x, private_rows->of(x), entry / call.active)
                        : row_in_panel(x, m.in.of(x), g.first);
  };
  lower(plan, m, b, {&call.gates, &call.ups}, apart, w, rows_of);
  GroupTasks(b.last_group - b.first_group, tiles, w.count).each(next_expand_, [&](int index, int tile0, int tile1) {
    const ExpertGroup& g = m.groups[(size_t)(b.first_group + index)];
    const Linear &gate = plan.linears[(size_t)call.gates[(size_t)g.expert]],
                 &up = plan.linears[(size_t)call.ups[(size_t)g.expert]],
                 &down = plan.linears[(size_t)call.downs[(size_t)g.expert]];
    const int entry = m.entries[(size_t)(b.first_entry + index)];
    for (int tile = tile0; tile < tile1; tile += 2) {
      const int end = std::min(tile + 2, tile1), lanes = std::min(gate.out - tile * kLanes, kPair);
      const auto multiply = [&](const Linear& x, int slot, float* to) {
        kernels().tiles(x, tile, end, rows_of(x, g, entry), 0, g.rows, to, kPair, false);
        if (x.low) kernels().tiles(x.low->up, tile, end, m.lowered_rows(slot, g, apart), 0, g.rows, to, kPair, true);
      };
      multiply(gate, 0, gates), multiply(up, 1, ups);
      for (int i = 0; i < g.rows; i++) {
        kernels().gate(gates + i * kPair, ups + i * kPair, product, lanes, call.activation);
        m.inner.store(down, product, lanes, g.first + i, tile);
        if (down.low && down.low->down.reads() != down.reads())
          m.inner.store(down.low->down, product, lanes, g.first + i, tile);
      }
    }
  });
}

bool Mixture::inner_waits(const Plan& plan) const {
  return std::any_of(call.downs.begin(), call.downs.end(), [&](int i) {
    const Linear& down = plan.linears[(size_t)i];
    return down.reads() == Reads::tokens || (down.low && down.low->down.reads() == Reads::tokens);
  });
}

// Rows of `expand` that down reads with one scale each, now that they are whole.
void Mixture::quantise_inner(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, Worker& w) const {
  for (int index = b.first_group + w.id; index < b.last_group; index += w.count) {
    const ExpertGroup& g = m.groups[(size_t)index];
    const Linear& down = plan.linears[(size_t)call.downs[(size_t)g.expert]];
    const Linear& reader = down.reads() == Reads::tokens || !down.low ? down : down.low->down;
    const float* rows = (const float*)m.inner.plain.data() + (size_t)g.first * (size_t)down.in;
    for (int i = 0; reader.reads() == Reads::tokens && i < g.rows; i++)
      place_row(reader, rows + (size_t)i * (size_t)down.in, g.first + i, m.inner.tokens.data());
  }
}

void Mixture::reduce(const Plan& plan, MixtureBuffers& m, const ExpertBatch& b, bool apart, Worker& w) {
  const Linear& any = plan.linears[(size_t)call.downs[0]];
  const size_t width = (size_t)any.out;
  const auto rows_of = [&](const Linear& x, const ExpertGroup& g, int) {
    return row_in_panel(x, m.inner.of(x), g.first);
  };
  lower(plan, m, b, {&call.downs}, apart, w, rows_of);
  GroupTasks(b.last_group - b.first_group, any.tiles(), w.count)
      .each(next_reduce_, [&](int index, int tile0, int tile1) {
        const ExpertGroup& g = m.groups[(size_t)(b.first_group + index)];
        const Linear& down = plan.linears[(size_t)call.downs[(size_t)g.expert]];
        float* to = m.parts.data() + (size_t)g.first * width + (size_t)tile0 * kLanes;
        kernels().tiles(down, tile0, tile1, rows_of(down, g, 0), 0, g.rows, to, width, false);
        if (down.low)
          kernels().tiles(down.low->up, tile0, tile1, m.lowered_rows(0, g, apart), 0, g.rows, to, width, true);
      });
}

// Adds each row's parts of this batch, experts ascending. Few rows: workers share the columns.
void Mixture::combine(Plan& plan, Step& s, MixtureBuffers& m, const ExpertBatch& b, Worker& w) const {
  const int width = plan.widths[(size_t)call.sum];
  const bool apart = s.rows <= kPrivateRows, first = b.first_expert == 0, last = b.last_expert == call.count();
  const int from = apart ? w.begin(width) : 0, to = apart ? w.end(width) : width;
  for (int row = apart ? 0 : w.begin(s.rows), end = apart ? s.rows : w.end(s.rows); row < end; row++) {
    float* sum = plan.buffer(call.sum, s) + (size_t)row * (size_t)width;
    if (first) std::fill(sum + from, sum + to, 0.0f);
    for (size_t i = (size_t)row * (size_t)call.active, stop = i + (size_t)call.active; i < stop; i++) {
      if (m.chosen[i] < b.first_expert || m.chosen[i] >= b.last_expert) continue;
      const float *part = m.parts.data() + (size_t)m.places[i] * (size_t)width, weight = m.weights[i];
      for (int c = from; c < to; c++) sum[c] += weight * part[c];
    }
    if (!last || call.out < 0) continue;
    float* out = plan.buffer(call.out, s) + (size_t)row * (size_t)width;
    for (int c = from; c < to; c++) out[c] += sum[c];
  }
}

void Mixture::run(Plan& plan, Step& s, Worker& w) {
  MixtureBuffers& m = *plan.mixture;
  const int columns = plan.widths[(size_t)in];
  const bool apart = s.rows <= kPrivateRows;
  const float *x = plan.buffer(in, s), *scores = plan.buffer(call.scores, s);
  const auto ready = panels.prepare(plan, w, s.rows, columns, [&](int i) { return x + (size_t)i * (size_t)columns; });
  float* probabilities = (float*)(w.scratch + panels.scratch(columns)) + (2 * kGroupRows + 1) * kPair;
  const int begin = apart ? 0 : w.begin(s.rows), end = apart ? (w.id == 0 ? s.rows : 0) : w.end(s.rows);
  for (int row = begin; row < end; row++) choose(m, scores + (size_t)row * (size_t)call.count(), row, probabilities);
  if (!apart) w.barrier();
  if (w.id == 0) group(m, s.rows);
  w.barrier();
  const bool waits = inner_waits(plan);
  for (size_t i = 0; i < m.batches.size(); i++) {
    const ExpertBatch& b = m.batches[i];
    if (i > 0) {  // the batch before is done with panels and counters
      w.barrier();
      if (w.id == 0) next_expand_.store(0), next_reduce_.store(0);
      if (apart) w.barrier();
    }
    if (!apart) gather(plan, m, b, ready, w), w.barrier();
    expand(plan, m, b, apart ? &ready : nullptr, w);
    w.barrier();
    if (waits) quantise_inner(plan, m, b, w), w.barrier();
    reduce(plan, m, b, apart, w);
    w.barrier();
    combine(plan, s, m, b, w);
  }
}

}  // namespace thrifty
