#include "attention/attend.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"

namespace thrifty {

namespace {

size_t partial_floats(const AttendArgs& a) {
  return (size_t)a.n * (size_t)a.heads * (size_t)a.chunk_stride * (align64((size_t)a.dim) + kPartialHeader);
}

}  // namespace

void HeadTurn::apply(bool query, const float* turn, int dim, float* x) const {
  if (const float* norm = query ? query_norm : key_norm) kernels().rms_norm(x, norm, epsilon, dim, x);
  kernels().rotate(x, turn, turn + half, half);
}

// A worker's turned queries of one sequence and KV head, and a key on its way to the cache; in front of the kernels'
// scratch.
class Attention::Turned {
 public:
  Turned(const Attention& attention, uint8_t* scratch) : attention_(attention), queries_((float*)scratch) {}
  static size_t bytes(int dim, int group) { return align64((size_t)(group + 1) * (size_t)dim * sizeof(float)); }

  // What a task attends with.
  AttendArgs ready(const Task& t) {
    AttendArgs a = attention_.args_[(size_t)t.sequence];
    const Fresh& fresh = attention_.fresh_[(size_t)t.sequence / (size_t)attention_.kv_heads_];
    if (!fresh.row.heads) return a;
    const size_t dim = (size_t)a.dim, first = (size_t)a.kv_head * (size_t)a.group * dim;
    if (t.sequence != sequence_) {
      std::memcpy(queries_, a.q + first, (size_t)a.group * dim * sizeof(float));
      for (int g = 0; g < a.group; g++) fresh.row.heads->apply(true, fresh.row.turn, a.dim, queries_ + (size_t)g * dim);
      sequence_ = t.sequence;
    }
    if (attention_.writes(t)) {
      float* key = queries_ + (size_t)a.group * dim;
      std::memcpy(key, fresh.row.key + (size_t)a.kv_head * dim, dim * sizeof(float));
      fresh.row.heads->apply(false, fresh.row.turn, a.dim, key);
      fresh.view->write(fresh.layer, a.kv_head, a.slots - 1, key, fresh.row.value + (size_t)a.kv_head * dim);
    }
    a.q = queries_ - first;
    return a;
  }

 private:
  const Attention& attention_;
  float* queries_;
  int sequence_ = -1;
};

size_t Attention::scratch_bytes(int dim, int group) {
  return Turned::bytes(dim, group) + kernels().attend_scratch(dim, group);
}

void Attention::check(const View& view, int layer, int rows, int heads, int window) {
  if (heads < 1 || heads % view.kv_heads(layer))
    throw std::invalid_argument("query heads (" + std::to_string(heads) +
                                ") must be a multiple of the view's KV heads (" + std::to_string(view.kv_heads(layer)) +
                                ")");
  if (window < 0) throw std::invalid_argument("window must be 0 (none) or positive, not " + std::to_string(window));
  for (int h = 0; h < view.kv_heads(layer); h++)
    if (rows < 1 || rows > view.tokens(layer, h))
      throw std::invalid_argument(std::to_string(rows) + " query rows need at least as many slots; layer " +
                                  std::to_string(layer) + " head " + std::to_string(h) + " holds " +
                                  std::to_string(view.tokens(layer, h)));
}

void Attention::begin(Streams* streams, const std::vector<Streams::Stage>* stages) {
  args_.clear(), tasks_.clear(), merges_.clear(), parts_.clear(), fresh_.clear(), choice_.begin();
  streams_ = streams, stages_ = stages, failed_ = false;
  next_.store(0, std::memory_order_relaxed);
}

void Attention::add(const View& view, int layer, const Call& call, int rows, const float* q, float* out) {
  kv_heads_ = view.kv_heads(layer);
  fresh_.push_back({call.row, &view, layer});
  for (int h = 0; h < kv_heads_; h++) {
    const auto& spans = view.spans(layer, h);
    AttendArgs a{};
    a.spans = spans.data(), a.span_count = (int)spans.size(), a.base_pages = view.base_pages(layer, h),
    a.slots = view.tokens(layer, h);
    a.q = q, a.out = out, a.n = rows, a.heads = call.heads, a.dim = view.head_dim(layer);
    a.group = call.heads / kv_heads_, a.kv_head = h, a.scale = call.scale, a.softcap = call.softcap,
    a.window = call.window;
    a.accumulate = call.accumulate, a.accumulate_stride = call.accumulate_stride,
    a.accumulate_row = call.accumulate_row;
    a.tree = call.tree, a.ahead = call.ahead;
    int first_page = 0;
    if (call.window > 0) {  // pages that no row can see
      const int slot = std::max(0, a.slots - rows + 1 - call.window);
      for (const Span& s : spans)
        if (s.tokens > 0 && s.first_slot <= slot) first_page = s.first_page + (slot - s.first_slot) / kPage;
    }
    const int pages = spans.empty() ? 0 : spans.back().first_page + spans.back().pages();
    a.first_chunk = (first_page + a.base_pages) / kChunkPages;
    a.chunks = (pages + a.base_pages + kChunkPages - 1) / kChunkPages - a.first_chunk;
    args_.push_back(a);
    if (call.decodes) choice_.add(view, layer, a, (int)args_.size() - 1);
  }
}

// What `Turned` attends with, of one head.
void Attention::read_query(const void* attention, int index, int row, int head, float* to) {
  const Attention& self = *(const Attention*)attention;
  const AttendArgs& a = self.args_[(size_t)index];
  const Fresh& fresh = self.fresh_[(size_t)index / (size_t)self.kv_heads_];
  const size_t place = (size_t)row * (size_t)a.heads + (size_t)(a.kv_head * a.group + head);
  std::memcpy(to, a.q + place * (size_t)a.dim, (size_t)a.dim * sizeof(float));
  if (fresh.row.heads) fresh.row.heads->apply(true, fresh.row.turn, a.dim, to);
}

void Attention::split(int index, int workers, size_t tiles) {
  const AttendArgs& a = args_[(size_t)index];
  const int step = kernels().attend_rows(a.group);
  if (a.n <= step && a.chunks > 1 && tiles < 4 * (size_t)workers) {
    merges_.push_back(index);
    for (int c = a.first_chunk; c < a.first_chunk + a.chunks; c++) tasks_.push_back({index, a.kv_head, c, -1});
    return;
  }
  for (int row = (a.n - 1) / step * step; row >= 0; row -= step)  // the longest rows first
    tasks_.push_back({index, a.kv_head, row, std::min(row + step, a.n)});
}

void Attention::split_heads(int first, int last, int workers, size_t tiles) {
  Part part{first, last, (int)tasks_.size(), 0, (int)merges_.size(), 0};
  for (size_t i = 0; i < args_.size(); i++)
    if (args_[i].kv_head >= first && args_[i].kv_head < last) split((int)i, workers, tiles);
  part.last_task = (int)tasks_.size(), part.last_merge = (int)merges_.size();
  parts_.push_back(part);
}

void Attention::prepare(AttentionBuffers& buffers, int workers) {
  size_t tiles = 0, floats = 0, rows = 0;
  bool finals = false;
  for (const auto& a : args_) tiles += (size_t)((a.n - 1) / kernels().attend_rows(a.group) + 1);
  if (!stages_) split_heads(0, kv_heads_, workers, tiles);
  for (size_t i = 0; stages_ && i < stages_->size(); i++)
    split_heads((*stages_)[i].first, (*stages_)[i].last, workers, tiles);
  for (size_t i = 0; i < args_.size(); i += (size_t)kv_heads_) {  // heads may differ in length after eviction
    AttendArgs* heads = &args_[i];
    int chunks = 0;
    for (int h = 0; h < kv_heads_; h++) chunks = std::max(chunks, heads[h].chunks);
    for (int h = 0; h < kv_heads_; h++) heads[h].chunk_stride = chunks;
    floats += partial_floats(heads[0]), rows += (size_t)heads[0].n * (size_t)heads[0].heads * 2;
    finals = finals || heads[0].accumulate;
  }
  choice_.prepare(buffers.choice, args_);
  apart_ = choice_.empty() && (!merges_.empty() || tiles == args_.size());
  for (size_t i = 0; i + 1 < args_.size(); i++)  // heads follow one another in memory as in the tasks
    if (apart_ && !stages_ && args_[i + 1].span_count > 0 && args_[i + 1].window == 0)
      args_[i].after = args_[i + 1].spans;
  if (!merges_.empty() && buffers.partials.size() < floats) buffers.partials.resize(floats);
  accumulates_ = finals;
  if (finals && buffers.finals.size() < rows) buffers.finals.resize(rows);
  size_t partial = 0, row = 0;
  for (size_t i = 0; i < args_.size(); i += (size_t)kv_heads_) {
    for (int h = 0; h < kv_heads_; h++) {
      args_[i + (size_t)h].partials = merges_.empty() ? nullptr : buffers.partials.data() + partial;
      args_[i + (size_t)h].finals = finals ? buffers.finals.data() + row : nullptr;
    }
    partial += partial_floats(args_[i]), row += (size_t)args_[i].n * (size_t)args_[i].heads * 2;
  }
}

bool Attention::writes(const Task& t) const {
  const AttendArgs& a = args_[(size_t)t.sequence];
  return fresh_[(size_t)t.sequence / (size_t)kv_heads_].row.heads &&
         (t.last >= 0 || t.first == a.first_chunk + a.chunks - 1);
}

void Attention::fetch_slot(const Task& t) const {
  const Fresh& fresh = fresh_[(size_t)t.sequence / (size_t)kv_heads_];
  const AttendArgs& a = args_[(size_t)t.sequence];
  if (writes(t)) fresh.view->fetch(fresh.layer, a.kv_head, a.slots - 1);
}

void Attention::warm(Worker& w) const {
  const int first = w.begin((int)tasks_.size());
  if (!apart_ || first >= w.end((int)tasks_.size())) return;
  const Task& t = tasks_[(size_t)first];
  fetch_slot(t);
  const AttendArgs& a = args_[(size_t)t.sequence];
  int page = std::max((t.last < 0 ? t.first : a.first_chunk) * kChunkPages - a.base_pages, 0);
  for (int i = 0; i < a.span_count; page -= a.spans[i].pages(), i++)
    if (page < a.spans[i].pages()) return fetch_page(a.spans[i], page, a.dim);
}

void Attention::run(Worker& w) {
  if (!choice_.empty()) choice_.run(w, args_, read_query, this);
  if (!stages_) return run_part(parts_[0], w);
  for (size_t i = 0; i < stages_->size(); i++) {
    const Streams::Stage& stage = (*stages_)[i];
    if (!streams_->wait(stage)) {
      failed_ = true;
      return;
    }
    if (w.id == 0) next_.store(parts_[i].first_task, std::memory_order_relaxed);
    w.barrier();
    run_part(parts_[i], w);
    w.barrier();
    if (w.id == 0) streams_->release(stage);
  }
}

void Attention::run_part(const Part& part, Worker& w) {
  const Kernels& k = kernels();
  Turned turned(*this, w.scratch);
  uint8_t* scratch = args_.empty() ? w.scratch : w.scratch + Turned::bytes(args_[0].dim, args_[0].group);
  const auto work = [&](const Task& t) {
    const AttendArgs a = turned.ready(t);
    if (t.last < 0) k.attend_chunk(a, t.first, scratch);
    else k.attend_tile(a, t.first, t.last, scratch);
  };
  const int count = part.last_task - part.first_task, end = part.first_task + w.end(count);
  if (apart_) {
    for (int i = part.first_task + w.begin(count); i < end; i++) {
      if (i + 1 < end) fetch_slot(tasks_[(size_t)i + 1]);
      work(tasks_[(size_t)i]);
    }
  } else {
    for (int i = next_.fetch_add(1); i < part.last_task; i = next_.fetch_add(1)) work(tasks_[(size_t)i]);
  }
  if (!merges_.empty()) w.barrier(), merge(part, w);
  if (accumulates_) w.barrier(), accumulate(part, w);
}

void Attention::merge(const Part& part, Worker& w) {
  const Kernels& k = kernels();
  int unit = 0;
  for (int i = part.first_merge; i < part.last_merge; i++) {
    const AttendArgs& a = args_[(size_t)merges_[(size_t)i]];
    for (int row = 0; row < a.n; row++)
      for (int g = 0; g < a.group; g++)
        if (unit++ % w.count == w.id) k.attend_merge(a, row, a.kv_head * a.group + g);
  }
}

void Attention::accumulate(const Part& part, Worker& w) {
  const Kernels& k = kernels();
  int unit = 0;
  for (const auto& a : args_) {
    if (!a.accumulate || a.kv_head < part.first_head || a.kv_head >= part.last_head) continue;
    const int pages = a.span_count ? a.spans[a.span_count - 1].first_page + a.spans[a.span_count - 1].pages() : 0;
    for (int page = 0; page < pages; page++)
      if (unit++ % w.count == w.id) k.attend_accumulate(a, page, w.scratch);
  }
}

}  // namespace thrifty
