#include "linear.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "isa.hpp"

namespace thrifty {

namespace {

constexpr size_t kPassBytes = 128 << 10;  // activations and results of a pass stay in a second-level cache of 1 MB

float half_value(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, body = h & 0x7fffu;
  if (body < 0x400u) return (sign ? -1.0f : 1.0f) * (float)body * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
  const uint32_t bits = sign | (body >= 0x7c00u ? 0x7f800000u | (body & 0x3ffu) << 13 : (body + 0x1c000u) << 13);
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

int code_at(const Linear& w, size_t tile, int lane, int column) {
  const int block = column / kBlockColumns, c = column % kBlockColumns;
  const uint8_t* p = w.codes + (tile * (size_t)w.blocks() + (size_t)block) * (size_t)(64 * w.kind);
  if (w.kind == 8) return p[64 * (c / 4) + 4 * lane + c % 4] - 128;
  const uint8_t byte = p[64 * (c % 16 / 4) + 4 * lane + c % 4];
  return (c < 16 ? byte & 15 : byte >> 4) - (w.minimums ? 0 : 8);
}

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

void check_linear(int kind, int out, int in, int group) {
  if (kind != 4 && kind != 8 && kind != 16 && kind != 32) refuse("linear kind must be 4, 8 (codes), 16 (bf16) or 32 (plain fp32), not " + std::to_string(kind));
  if (out < 1 || in < 1 || out > (1 << 24) || in > (1 << 20)) refuse("linear of shape " + std::to_string(out) + " x " + std::to_string(in) + " is out of range");
  if (kind < 16 && group != 32 && group != 64 && group != 128) refuse("group must be 32, 64 or 128, not " + std::to_string(group));
}

Linear make_linear(int kind, uintptr_t codes, uintptr_t scales, uintptr_t minimums, uintptr_t bias, int out, int in, int group) {
  check_linear(kind, out, in, group);
  if (!codes || (kind < 16 && !scales)) refuse("linear needs codes and, for codes of 4 or 8 bits, scales");
  Linear w;
  w.kind = kind, w.out = out, w.in = in, w.group = group;
  w.codes = (const uint8_t*)codes, w.bias = (const float*)bias;
  if (kind < 16) w.scales = (const uint16_t*)scales, w.minimums = (const uint16_t*)minimums;
  return w;
}

namespace {

// Activations of a row are `count` items of `bytes`, in panels of kPanel interleaved rows (plain rows: each by itself).
struct Items {
  explicit Items(const Linear& w)
      : bytes(w.kind == 32 ? (size_t)w.in * sizeof(float) : w.kind == 16 ? sizeof(uint32_t) : sizeof(ActivationBlock)),
        count(w.kind == 32 ? 1 : w.kind == 16 ? ((size_t)w.in + 1) / 2 : (size_t)w.blocks()) {}
  size_t start(int row) const { return ((size_t)(row / kPanel) * count * kPanel + (size_t)(row % kPanel)) * bytes; }
  size_t bytes, count;
};

}  // namespace

size_t panel_bytes(const Linear& w, int rows) {
  const Items items(w);
  return ((size_t)rows + kPanel - 1) / kPanel * kPanel * items.count * items.bytes;
}

void place_row(const Linear& w, const float* x, int row, uint8_t* panel) {
  uint8_t* to = panel + Items(w).start(row);
  if (w.kind == 32) std::memcpy(to, x, (size_t)w.in * sizeof(float));
  else if (w.kind == 16) kernels().to_pairs(x, w.in, (uint32_t*)to);
  else kernels().quantise(x, w.in, (ActivationBlock*)to);
}

void place_block(const Linear& w, const float* x, int columns, int row, int block, uint8_t* panel) {
  kernels().quantise(x, columns, (ActivationBlock*)(panel + Items(w).start(row)) + (size_t)block * kPanel);
}

void copy_row(const Linear& w, const uint8_t* panel, int from, uint8_t* target, int to) {
  const Items items(w);
  panel += items.start(from), target += items.start(to);
  for (size_t i = 0; i < items.count; i++) std::memcpy(target + i * kPanel * items.bytes, panel + i * kPanel * items.bytes, items.bytes);
}

const uint8_t* row_in_panel(const Linear& w, const uint8_t* panel, int row) { return panel + Items(w).start(row); }

void fetch_tile(const Linear& w, int tile) {
  const size_t bytes = w.kind == 32 ? (size_t)w.in * kLanes * sizeof(float) : w.kind == 16 ? ((size_t)w.in + 1) / 2 * 64 : (size_t)w.blocks() * 64 * (size_t)w.kind;
  const uint8_t* from = w.codes + (size_t)tile * bytes;
  for (size_t i = 0; i < kFetchBytes; i += 64) __builtin_prefetch(from + i);
}

float dot(const float* a, const float* b, int count) {
  float sums[kLanes] = {}, sum = 0.0f;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; j++) sums[j] += a[i + j] * b[i + j];
  for (; i < count; i++) sum += a[i] * b[i];
  for (float s : sums) sum += s;
  return sum;
}

void linear_row(const Linear& w, int row, float* out) {
  const size_t tile = (size_t)row / kLanes;
  const int lane = row % kLanes;
  if (w.kind == 32) {
    std::memcpy(out, (const float*)w.codes + (size_t)row * (size_t)w.in, (size_t)w.in * sizeof(float));
    return;
  }
  if (w.kind == 16) {
    const size_t pairs = ((size_t)w.in + 1) / 2;
    for (int c = 0; c < w.in; c++) {
      const uint32_t bits = (uint32_t)((const uint16_t*)w.codes)[((tile * pairs + (size_t)c / 2) * kLanes + (size_t)lane) * 2 + (size_t)c % 2] << 16;
      std::memcpy(out + c, &bits, 4);
    }
    return;
  }
  const int groups = (w.blocks() * kBlockColumns + w.group - 1) / w.group;
  for (int g = 0; g < groups; g++) {
    const size_t at = (tile * (size_t)groups + (size_t)g) * kLanes + (size_t)lane;
    const float scale = half_value(w.scales[at]), minimum = w.minimums ? half_value(w.minimums[at]) : 0.0f;
    for (int c = g * w.group; c < std::min(w.in, (g + 1) * w.group); c++) out[c] = scale * (float)code_at(w, tile, lane, c) + minimum;
  }
}

int rows_per_pass(const Linear& w) {
  const size_t per_panel = panel_bytes(w, kPanel);
  return kPanel * (int)std::max<size_t>(1, std::min<size_t>(64, kPassBytes / per_panel));
}

void matmul(const Linear& w, const float* x, float* y, int m) {
  std::vector<uint8_t> memory(panel_bytes(w, m) + 64);
  uint8_t* panel = memory.data() + (64 - (uintptr_t)memory.data() % 64) % 64;
  Claims claims;
  claims.reset(Pool::shared().threads());
  Pool::shared().run(0, [&](Worker& worker) {
    for (int i = worker.begin(m); i < worker.end(m); i++) place_row(w, x + (size_t)i * (size_t)w.in, i, panel);
    worker.barrier();
    TileTasks(w, m, w.tiles(), worker.count).each(worker, claims, [&](int row0, int row1, int tile0, int tile1) {
      kernels().tiles(w, tile0, tile1, panel, row0, row1, y + (size_t)row0 * (size_t)w.out + (size_t)tile0 * kLanes, (size_t)w.out, false);
    });
  });
}

}  // namespace thrifty
