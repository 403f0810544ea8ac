// Slots that lie in a file: before a group of KV heads is attended to, its bytes are read into a buffer.
#pragma once
#include <cstdint>
#include <vector>

namespace thrifty {

struct StreamRead {
  int64_t offset = 0, bytes = 0;  // in the file; whole blocks, which direct reads need
  int64_t least = 0;              // bytes that must come: the file may end behind them
  uint8_t* to = nullptr;
};

// KV heads first_head..last_head-1 of one layer. Groups of a sequence that have the same buffer are not there together.
struct StreamGroup {
  int first_head = 0, last_head = 0;
  int descriptor = -1;
  bool direct = false;  // reads pass the page cache by; else it is told to forget them
  int buffer = 0;
  std::vector<StreamRead> reads;
};

}  // namespace thrifty
