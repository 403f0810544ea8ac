#include "attention/streams.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

namespace thrifty {

bool Streams::wanted(const std::vector<View*>& views) {
  return std::any_of(views.begin(), views.end(), [](const View* v) { return v->streams(); });
}

Streams::Streams(const std::vector<View*>& views, const std::vector<int>& layers) {
  if (!layers.empty()) stages_.resize((size_t)layers.back() + 1);
  for (int layer : layers) add_layer(views, layer);
  size_t most = 0;
  for (const Load& load : loads_) most = std::max(most, load.group->reads.size());
  for (size_t i = 0; i < std::min(most, kReaders); i++) readers_.emplace_back([this] { read_all(); });
}

Streams::~Streams() {
  {
    std::lock_guard<std::mutex> lock(guard_);
    over_ = true;
  }
  changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

void Streams::add_layer(const std::vector<View*>& views, int layer) {
  std::set<int> borders{views[0]->kv_heads(layer)};
  bool any = false;
  for (const View* view : views)
    for (const StreamGroup& group : view->streamed(layer))
      any = true, borders.insert(group.first_head), borders.insert(group.last_head);
  borders.erase(0);
  if (!any) return;
  const int begin = (int)loads_.size();
  int first = 0;
  for (int last : borders) {
    Stage stage{first, last, {}, {}};
    for (const View* view : views)
      for (const StreamGroup& group : view->streamed(layer))
        if (group.first_head == first) stage.begins.push_back(add(view, group));
    for (int i = begin; i < (int)loads_.size(); i++)
      if (loads_[(size_t)i].group->last_head == last) stage.ends.push_back(i);
    stages_[(size_t)layer].push_back(std::move(stage));
    first = last;
  }
}

int Streams::add(const View* view, const StreamGroup& group) {
  const int number = (int)loads_.size();
  Load& load = loads_.emplace_back(view, &group);
  if (group.reads.empty()) load.state = State::kThere;
  for (int i = number - 1; i >= 0 && load.before < 0; i--)
    if (loads_[(size_t)i].view == view && loads_[(size_t)i].group->buffer == group.buffer) load.before = i;
  return number;
}

const std::vector<Streams::Stage>* Streams::stages(int layer) const {
  const bool some = layer < (int)stages_.size() && !stages_[(size_t)layer].empty();
  return some ? &stages_[(size_t)layer] : nullptr;
}

bool Streams::wait(const Stage& stage) {
  std::unique_lock<std::mutex> lock(guard_);
  bool there = true;
  for (int i : stage.begins) {
    Load& load = loads_[(size_t)i];
    changed_.wait(lock, [&] { return load.state != State::kWanted; });
    there = there && load.state == State::kThere;
  }
  return there;
}

void Streams::release(const Stage& stage) {
  {
    std::lock_guard<std::mutex> lock(guard_);
    for (int i : stage.ends) loads_[(size_t)i].released = true;
  }
  changed_.notify_all();
}

std::string Streams::error() {
  std::lock_guard<std::mutex> lock(guard_);
  return error_;
}

void Streams::read_all() {
  for (Load& load : loads_) {
    {
      std::unique_lock<std::mutex> lock(guard_);
      changed_.wait(lock, [&] { return over_ || load.before < 0 || loads_[(size_t)load.before].released; });
      if (over_) return;
    }
    const auto& reads = load.group->reads;
    for (size_t i = load.next.fetch_add(1); i < reads.size(); i = load.next.fetch_add(1))
      finish(load, read(*load.view, *load.group, reads[i]));
  }
}

void Streams::finish(Load& load, const std::string& problem) {
  {
    std::lock_guard<std::mutex> lock(guard_);
    if (error_.empty()) error_ = problem;
    if (++load.done < load.group->reads.size()) return;
    load.state = error_.empty() ? State::kThere : State::kFailed;
  }
  changed_.notify_all();
}

std::string Streams::read(const View& view, const StreamGroup& group, const StreamRead& one) {
  int64_t done = 0;
  while (done < one.least) {
    const ssize_t count =
        pread(group.descriptor, one.to + done, (size_t)(one.bytes - done), (off_t)(one.offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::string("cannot read slots from the disk tier: ") + std::strerror(errno);
    if (count == 0) return "cannot read slots from the disk tier: its file ends before them";
    done += count;
  }
  view.count_read(done);
#ifdef POSIX_FADV_DONTNEED
  if (!group.direct) posix_fadvise(group.descriptor, (off_t)one.offset, (off_t)one.bytes, POSIX_FADV_DONTNEED);
#endif
  return "";
}

}  // namespace thrifty
