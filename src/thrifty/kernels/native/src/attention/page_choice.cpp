#include "attention/page_choice.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "isa/isa.hpp"

namespace thrifty {

namespace {

// The last span that starts at or before a slot and is not empty.
const Span& span_of_slot(const AttendArgs& a, int slot) {
  int i = a.span_count - 1;
  while (i > 0 && (a.spans[i].first_slot > slot || a.spans[i].tokens == 0)) i--;
  return a.spans[i];
}

int blocks_of(const AttendArgs& a) {
  const Span& last = a.spans[a.span_count - 1];
  return last.first_page + last.pages();
}

// The bits of page `part` of a block, and of those behind it.
uint64_t bits_from(int page, int part) { return ~0ull << (part * page); }
uint64_t bits_of(int page, int part) { return page == kPage ? ~0ull : ((1ull << page) - 1) << (part * page); }

}  // namespace

void PageChoice::add(const View& view, int layer, const AttendArgs& a, int index) {
  PageBounds* bounds = view.bounds(layer, a.kv_head);
  if (!bounds || a.span_count == 0) return;
  const Span& own = span_of_slot(a, a.slots - a.n);
  const int place = a.slots - a.n - own.first_slot, open = own.first_page + place / kPage;
  const int pages = open * bounds->parts() + place % kPage / bounds->page();
  if (pages < bounds->budget()) return;
  if (bounds->room() < pages)
    throw std::invalid_argument("layer " + std::to_string(layer) + " holds the bounds of " +
                                std::to_string(bounds->room()) + " pages, not of " + std::to_string(pages) +
                                "; call hold_bounds first");
  choices_.push_back({index, bounds, pages, open, 0, 0});
}

void PageChoice::prepare(ChoiceBuffers& buffers, std::vector<AttendArgs>& args) {
  size_t seen = 0, scores = 0;
  unknown_ = false;
  for (Choice& c : choices_) {
    AttendArgs& a = args[(size_t)c.index];
    const size_t rows = (size_t)a.n * (size_t)a.group;
    a.seen_blocks = blocks_of(a), a.seen_in_part = c.bounds->parts() > 1;
    c.seen = seen, c.scores = scores;
    seen += rows * (size_t)a.seen_blocks, scores += rows * (size_t)c.pages;
    unknown_ = unknown_ || !c.bounds->all_known(c.pages);
  }
  if (buffers.seen.size() < seen) buffers.seen.resize(seen);
  if (buffers.scores.size() < scores) buffers.scores.resize(scores), buffers.order.resize(scores);
  buffers_ = &buffers;
  for (const Choice& c : choices_) args[(size_t)c.index].seen = buffers.seen.data() + c.seen;
}

void PageChoice::run(Worker& w, const std::vector<AttendArgs>& args, Query query, const void* source) {
  if (unknown_) {
    for (const Choice& c : choices_) bound(c, args[(size_t)c.index], w);
    w.barrier();
  }
  int unit = 0;
  for (const Choice& c : choices_) {
    const AttendArgs& a = args[(size_t)c.index];
    float* plain = (float*)w.scratch;
    float* split = plain + bounds_width(a.dim);
    for (int i = 0; i < a.n * a.group; i++) {
      if (unit++ % w.count != w.id) continue;
      query(source, c.index, i / a.group, i % a.group, plain);
      kernels().split_query(plain, a.dim, split);
      choose(c, a, i, split);
    }
  }
  w.barrier();
}

// The worker's share of the pages whose bounds are not known yet.
void PageChoice::bound(const Choice& c, const AttendArgs& a, Worker& w) const {
  PageBounds& bounds = *c.bounds;
  const int parts = bounds.parts(), size = bounds.page();
  int i = 0;
  for (int block = w.id; block * parts < c.pages; block += w.count) {
    while (i + 1 < a.span_count && a.spans[i + 1].first_page <= block) i++;
    const Span& s = a.spans[i];
    const int own = block - s.first_page, slots = std::min(s.tokens - own * kPage, kPage);
    for (int part = 0, page = block * parts; part < parts && page < c.pages; part++, page++) {
      if (bounds.known(page) != PageBounds::kUnknown) continue;
      const int low = part * size, high = std::min(low + size, slots);
      const bool live = low < high && kernels().page_bounds(s, own, low, high, a.dim, bounds.of(page), w.scratch);
      bounds.set(page, live ? PageBounds::kBounded : PageBounds::kDead);
    }
  }
}

void PageChoice::choose(const Choice& c, const AttendArgs& a, int row, const float* query) const {
  PageBounds& bounds = *c.bounds;
  const size_t first = c.scores + (size_t)row * (size_t)c.pages;
  float* scores = buffers_->scores.data() + first;
  int32_t* order = buffers_->order.data() + first;
  kernels().page_scores(query, bounds.of(0), c.pages, a.dim, scores);
  int live = 0;
  for (int page = 0; page < c.pages; page++) {
    if (bounds.known(page) == PageBounds::kDead) continue;
    if (!(scores[page] == scores[page])) scores[page] = -std::numeric_limits<float>::infinity();  // no number
    order[live++] = page;
  }
  const int count = std::min(bounds.budget() - 1, live);
  if (count < live)
    std::nth_element(order, order + count, order + live,
                     [&](int32_t x, int32_t y) { return scores[x] != scores[y] ? scores[x] > scores[y] : x < y; });
  uint64_t* seen = buffers_->seen.data() + c.seen + (size_t)row * (size_t)a.seen_blocks;
  std::fill(seen, seen + c.open_block, 0);
  std::fill(seen + c.open_block, seen + a.seen_blocks, ~0ull);
  const int parts = bounds.parts(), own = c.pages - c.open_block * parts;
  seen[c.open_block] = bits_from(bounds.page(), own);
  for (int i = 0; i < count; i++) seen[order[i] / parts] |= bits_of(bounds.page(), order[i] % parts);
}

}  // namespace thrifty
