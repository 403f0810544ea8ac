#include "attention/view.hpp"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention/slab.hpp"

namespace thrifty {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

bool full_precision(const Span& s) { return !format_bits(s.format); }

uint16_t nearest_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

template <class T, class F>
void write_slot(const Span& s, int slot, int dim, const float* key, const float* value, F&& convert) {
  T* keys = (T*)s.base + (size_t)(slot / kPage) * kPage * (size_t)dim + slot % kPage;
  T* values = (T*)(s.base + slab_layout(s.format, (size_t)s.capacity, (size_t)dim).values) + (size_t)slot * (size_t)dim;
  for (int c = 0; c < dim; c++) keys[(size_t)c * kPage] = convert(key[c]);
  for (int c = 0; c < dim; c++) values[c] = convert(value[c]);
}

}  // namespace

View::View(int layers, int kv_heads, int head_dim)
    : View(std::vector<int>((size_t)std::max(layers, 0), kv_heads),
           std::vector<int>((size_t)std::max(layers, 0), head_dim)) {}

View::View(std::vector<int> kv_heads, std::vector<int> head_dims)
    : kv_heads_(std::move(kv_heads)), head_dims_(std::move(head_dims)) {
  size_t lists = 0;
  if (kv_heads_.size() != head_dims_.size()) refuse("a view needs KV heads and a head dimension for each layer");
  for (size_t i = 0; i < kv_heads_.size(); i++) {
    if (kv_heads_[i] < 1) refuse("a view needs at least one layer and one KV head");
    if (!takes_head_dim(head_dims_[i]))
      refuse("the native view needs a head dimension that is " + std::string(kHeadDims) + ", not " +
             std::to_string(head_dims_[i]));
    first_.push_back(lists), lists += (size_t)kv_heads_[i];
  }
  if (lists == 0) refuse("a view needs at least one layer and one KV head");
  spans_.resize(lists);
  streamed_.resize(kv_heads_.size());
  base_pages_.resize(lists);
}

size_t View::checked(int layer) const {
  if (layer < 0 || layer >= layers())
    refuse("layer " + std::to_string(layer) + " is outside 0.." + std::to_string(layers() - 1));
  return (size_t)layer;
}

size_t View::at(int layer, int head) const {
  const int heads = kv_heads(layer);
  if (head < 0 || head >= heads)
    refuse("KV head " + std::to_string(head) + " is outside 0.." + std::to_string(heads - 1));
  return first_[(size_t)layer] + (size_t)head;
}

void View::check_idle() const {
  if (users_.load() != 0)
    throw std::runtime_error("the view is being read by a running step; change it before or after the step");
}

void View::renumber(std::vector<Span>& list, size_t from) {
  for (size_t i = std::max<size_t>(from, 1); i < list.size(); i++) {
    list[i].first_slot = list[i - 1].first_slot + list[i - 1].tokens;
    list[i].first_page = list[i - 1].first_page + list[i - 1].pages();
  }
}

Span View::make_span(uintptr_t address, int tokens, int capacity, int format, uintptr_t bias, bool sealed) {
  const Format known = known_format(format);
  if (capacity < kPage || capacity % kPage)
    refuse("a span's capacity must be a positive multiple of 64, not " + std::to_string(capacity));
  if (tokens < 0 || tokens > capacity)
    refuse("a span of capacity " + std::to_string(capacity) + " cannot hold " + std::to_string(tokens) + " tokens");
  if (address == 0 || address % 64) refuse("a span's address must be 64-byte aligned and not null");
  if (bias % 4) refuse("a span's bias must be 4-byte aligned");
  Span s;
  s.base = (uint8_t*)address, s.bias = (const float*)bias;
  s.tokens = tokens, s.capacity = capacity, s.format = known, s.sealed = sealed;
  return s;
}

void View::push(int layer, int head, uintptr_t address, int tokens, int capacity, int format, uintptr_t bias,
                bool sealed) {
  check_idle();
  auto& list = spans_[at(layer, head)];
  list.push_back(make_span(address, tokens, capacity, format, bias, sealed));
  renumber(list, list.size() - 1);
}

void View::exchange(int layer, int head, int index, uintptr_t address, int capacity, int format, uintptr_t bias) {
  check_idle();
  auto& list = spans_[at(layer, head)];
  if (index < 0 || (size_t)index >= list.size())
    refuse("span " + std::to_string(index) + " of " + std::to_string(list.size()) + " does not exist");
  Span& old = list[(size_t)index];
  if (!old.sealed && old.tokens < old.capacity) refuse("span " + std::to_string(index) + " can still be appended to");
  Span s = make_span(address, old.tokens, capacity, format, bias, true);
  s.first_slot = old.first_slot, s.first_page = old.first_page;
  old = s;
  forget_bounds(layer, head, s.first_page, s.first_page + s.pages());
}

void View::clear(int layer, int head) {
  check_idle();
  for (int h = head < 0 ? 0 : head; h < (head < 0 ? kv_heads(layer) : head + 1); h++) {
    spans_[at(layer, h)].clear();
    base_pages_[at(layer, h)] = 0;
    forget_bounds(layer, h, 0);
  }
  if (head >= 0) return;
  streamed_[(size_t)layer].clear();
  streams_ = std::any_of(streamed_.begin(), streamed_.end(), [](const auto& groups) { return !groups.empty(); });
}

void View::stream(int layer, StreamGroup group) {
  check_idle();
  auto& groups = streamed_[checked(layer)];
  const int first = groups.empty() ? 0 : groups.back().last_head;
  if (group.first_head < first || group.last_head <= group.first_head || group.last_head > kv_heads(layer))
    refuse("a streamed group of heads " + std::to_string(group.first_head) + ".." + std::to_string(group.last_head) +
           " does not follow head " + std::to_string(first) + " of " + std::to_string(kv_heads(layer)));
  if (bounds(layer, group.first_head)) refuse("rows do not select pages in a layer that is streamed");
  for (const StreamRead& one : group.reads)
    if (!one.to || one.offset < 0 || one.least < 1 || one.bytes < one.least)
      refuse("a read of " + std::to_string(one.bytes) + " bytes at " + std::to_string(one.offset) + " is none");
  groups.push_back(std::move(group));
  streams_ = true;
}

const std::vector<StreamGroup>& View::streamed(int layer) const { return streamed_[checked(layer)]; }

void View::set_state(int layer, LayerState state) {
  check_idle();
  at(layer, 0);
  if (!state.committed || !state.newest || state.committed == state.newest || state.numbers < 1 || state.rows < 0)
    refuse("a recurrent state needs two buffers of its own, and rows that are not negative");
  if (!spans_[at(layer, 0)].empty()) refuse("layer " + std::to_string(layer) + " has slots, and so no recurrent state");
  if (states_.empty()) states_.resize(kv_heads_.size());
  states_[(size_t)layer] = state;
}

const LayerState* View::state(int layer) const {
  if (states_.empty()) return nullptr;
  at(layer, 0);
  return states_[(size_t)layer].numbers == 0 ? nullptr : &states_[(size_t)layer];
}

void View::commit_states(int layer) {
  check_idle();
  if (layer >= 0) at(layer, 0);
  for (size_t i = 0; i < states_.size(); i++) {
    LayerState& s = states_[i];
    if ((layer >= 0 && i != (size_t)layer) || s.rows == 0) continue;
    if (s.lost)
      throw std::runtime_error("layer " + std::to_string(i) + " lost its state when some of its rows were dropped; " +
                               "drop all rows since the last commit");
    std::swap(s.committed, s.newest);
    s.rows = 0;
  }
}

void View::truncate(int layer, int tokens) {
  check_idle();
  if (const LayerState* known = state(layer)) {
    LayerState& s = states_[(size_t)layer];
    if (tokens < 0 || tokens > known->rows)
      refuse("cannot drop " + std::to_string(tokens) + " rows: layer " + std::to_string(layer) + " has " +
             std::to_string(known->rows) + " since its state was committed");
    s.rows -= tokens;
    s.lost = s.rows > 0 && (s.lost || tokens > 0);
    return;
  }
  for (int h = 0; h < kv_heads(layer); h++)
    if (tokens < 0 || tokens > this->tokens(layer, h))
      refuse("cannot drop " + std::to_string(tokens) + " tokens: layer " + std::to_string(layer) + " head " +
             std::to_string(h) + " holds " + std::to_string(this->tokens(layer, h)));
  for (int h = 0; h < kv_heads(layer); h++) {
    auto& list = spans_[at(layer, h)];
    int left = tokens;
    size_t i = list.size();
    while (left > 0 && i > 0) {
      Span& s = list[--i];
      const int cut = std::min(left, s.tokens);
      s.tokens -= cut, left -= cut;
    }
    renumber(list, i);
    if (i < list.size()) forget_bounds(layer, h, list[i].first_page + list[i].tokens / kPage);
  }
}

void View::drop_front(int layer, int head, int spans) {
  check_idle();
  auto& list = spans_[at(layer, head)];
  if (spans < 0 || (size_t)spans > list.size())
    refuse("cannot drop " + std::to_string(spans) + " spans of " + std::to_string(list.size()));
  int pages = 0;
  for (int i = 0; i < spans; i++) pages += list[(size_t)i].pages();
  base_pages_[at(layer, head)] += pages;
  list.erase(list.begin(), list.begin() + spans);
  if (!list.empty()) list[0].first_slot = list[0].first_page = 0;
  renumber(list, 1);
  forget_bounds(layer, head, 0);
}

void View::select_pages(int layer, int page, int budget) {
  check_idle();
  at(layer, 0);
  if (page < kLanes || page > kPage || kPage % page)
    refuse("a page to select has 16, 32 or 64 slots, not " + std::to_string(page));
  if (!streamed_[(size_t)layer].empty()) refuse("rows do not select pages in a layer that is streamed");
  if (budget < 2) refuse("a row attends to at least 2 pages, not " + std::to_string(budget));
  bounds_.resize(spans_.size());
  for (int h = 0; h < kv_heads(layer); h++) bounds_[at(layer, h)] = PageBounds(head_dim(layer), page, budget);
}

void View::hold_bounds(int blocks) {
  check_idle();
  for (PageBounds& own : bounds_)
    if (own.selects()) own.hold(blocks);
}

int View::most_blocks() const {
  int most = 0;
  for (size_t i = 0; i < bounds_.size(); i++) {
    int blocks = 0;
    for (const Span& s : spans_[i]) blocks += s.sealed || !full_precision(s) ? s.pages() : s.capacity / kPage;
    if (bounds_[i].selects()) most = std::max(most, blocks);
  }
  return most;
}

PageBounds* View::bounds(int layer, int head) const {
  if (bounds_.empty()) return nullptr;
  PageBounds& own = bounds_[at(layer, head)];
  return own.selects() ? &own : nullptr;
}

void View::forget_bounds(int layer, int head, int first_block, int last_block) {
  if (!bounds_.empty()) bounds_[at(layer, head)].forget(first_block, last_block);
}

int View::tokens(int layer, int head) const {
  if (const LayerState* s = state(layer)) return s->rows;
  const auto& list = spans_[at(layer, head)];
  return list.empty() ? 0 : list.back().first_slot + list.back().tokens;
}

// The first span that can take a token: the last one in use if it is open and has room, else the one behind it.
size_t View::first_open(const std::vector<Span>& list) const {
  size_t i = list.size();
  while (i > 0 && list[i - 1].tokens == 0 && full_precision(list[i - 1]) && !list[i - 1].sealed) i--;
  if (i > 0 && full_precision(list[i - 1]) && !list[i - 1].sealed && list[i - 1].tokens < list[i - 1].capacity) i--;
  return i;
}

int View::room(int layer) const {
  if (state(layer)) return INT_MAX;
  int least = INT_MAX;
  for (int h = 0; h < kv_heads(layer); h++) {
    const auto& list = spans_[at(layer, h)];
    long long room = 0;
    for (size_t i = first_open(list); i < list.size(); i++) room += list[i].capacity - list[i].tokens;
    least = (int)std::min<long long>(least, room);
  }
  return least;
}

void View::reserve(int layer, int count) {
  if (const LayerState* s = state(layer)) {
    if (s->lost)
      throw std::runtime_error("layer " + std::to_string(layer) + " lost its state when some of its rows were dropped");
    states_[(size_t)layer].rows += count;
    return;
  }
  if (count > room(layer))
    refuse("layer " + std::to_string(layer) + " of the view has room for " + std::to_string(room(layer)) +
           " more tokens, not " + std::to_string(count) + "; push open pages first");
  for (int h = 0; h < kv_heads(layer); h++) {
    auto& list = spans_[at(layer, h)];
    const size_t first = first_open(list);
    int left = count;
    for (size_t i = first; left > 0; i++) {
      const int take = std::min(left, list[i].capacity - list[i].tokens);
      list[i].tokens += take, left -= take;
    }
    renumber(list, first);
  }
}

const Span& View::span_of(int layer, int head, int slot) const {
  const auto& list = spans_[first_[(size_t)layer] + (size_t)head];
  size_t low = 0, high = list.size() - 1;
  while (low < high) {  // the last span that starts at or before the slot; an empty one starts where its successor does
    const size_t middle = (low + high + 1) / 2;
    if (list[middle].first_slot <= slot) low = middle;
    else high = middle - 1;
  }
  return list[low];
}

void View::write(int layer, int head, int slot, const float* key, const float* value) const {
  const Span& s = span_of(layer, head, slot);
  if (s.format == Format::f32)
    write_slot<float>(s, slot - s.first_slot, head_dims_[(size_t)layer], key, value, [](float x) { return x; });
  else write_slot<uint16_t>(s, slot - s.first_slot, head_dims_[(size_t)layer], key, value, nearest_bf16);
}

void View::fetch(int layer, int head, int slot) const {
  const Span& s = span_of(layer, head, slot);
  const size_t size = number_bytes(s.format), dim = (size_t)head_dims_[(size_t)layer],
               place = (size_t)(slot - s.first_slot);
  const uint8_t* keys = s.base + (place / kPage * kPage * dim + place % kPage) * size;
  for (size_t c = 0; c < dim; c++) __builtin_prefetch(keys + c * kPage * size, 1);
  const uint8_t* values = s.base + slab_layout(s.format, (size_t)s.capacity, dim).values + place * dim * size;
  for (size_t i = 0; i < dim * size; i += 64) __builtin_prefetch(values + i, 1);
}

}  // namespace thrifty
