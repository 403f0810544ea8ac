// Reads what a step attends to and what lies in files, head group by head group, ahead of the workers.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "attention/view.hpp"

namespace thrifty {

// The groups of all sequences of a step, in the order of their use. Threads of their own read them one after the other;
// a group waits until the one before it in its sequence and buffer was attended to. So a sequence holds no more than
// its buffers, and the next group is read while this one is attended to. A group of many reads is shared by several
// threads: a disk answers small reads faster when it has several at once.
class Streams {
 public:
  // KV heads first..last-1 of a layer: attended to together.
  struct Stage {
    int first, last;
    std::vector<int> begins, ends;  // loads that are needed from here on, and those that are not any more behind it
  };
  static bool wanted(const std::vector<View*>& views);
  // layers: those that run, ascending.
  Streams(const std::vector<View*>& views, const std::vector<int>& layers);
  ~Streams();  // also where loads are left
  Streams(const Streams&) = delete;
  const std::vector<Stage>* stages(int layer) const;  // null: nothing of the layer is streamed
  // Until the stage's loads are there; false where one of them failed, the same for all workers.
  bool wait(const Stage& stage);
  void release(const Stage& stage);  // once, by one worker, when all have attended to it
  std::string error();               // of the load that failed, or empty

 private:
  enum class State : uint8_t { kWanted, kThere, kFailed };
  struct Load {
    Load(const View* view, const StreamGroup* group) : view(view), group(group) {}
    const View* view;
    const StreamGroup* group;
    int before = -1;  // the load whose buffer it takes
    State state = State::kWanted;
    bool released = false;
    std::atomic<size_t> next{0};  // the first of its reads that nobody has begun
    size_t done = 0;
  };
  static constexpr size_t kReaders = 4;
  void add_layer(const std::vector<View*>& views, int layer);
  int add(const View* view, const StreamGroup& group);
  void read_all();
  void finish(Load& load, const std::string& problem);
  static std::string read(const View& view, const StreamGroup& group, const StreamRead& one);  // what went wrong

  std::vector<std::vector<Stage>> stages_;  // by layer
  std::deque<Load> loads_;
  std::mutex guard_;
  std::condition_variable changed_;
  std::string error_;
  bool over_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace thrifty
