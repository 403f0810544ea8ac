// The native kernels over odd shapes with exactly sized memory, on every instruction set that this processor has, for
// the address and undefined-behaviour sanitizers. Plain programs check values against slow loops; no torch, no Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "attention/attend.hpp"
#include "attention/attention_map_driver.hpp"
#include "attention/compress_driver.hpp"
#include "attention/gather.hpp"
#include "isa/isa.hpp"
#include "linear/linear.hpp"
#include "linear/tensor_train.hpp"
#include "measure.hpp"
#include "plan/mixture.hpp"
#include "plan/plan.hpp"
#include "pool.hpp"
#include "attention/read_slab.hpp"
#include "linear/repack.hpp"
#include "attention/slab.hpp"
#include "attention/view.hpp"
#include "attention/witness.hpp"

using namespace thrifty;

namespace {

int failures = 0;
std::mt19937 random_source(1);

void expect(bool holds, const std::string& what) {
  if (holds) return;
  failures++;
  std::printf("FAILED on %s: %s\n", kernels().name, what.c_str());
}

void expect_refused(const std::string& what, const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) { return; }
  expect(false, what + " was not refused");
}

float uniform() { return std::uniform_real_distribution<float>(-1, 1)(random_source); }

std::vector<float> floats(size_t count) {
  std::vector<float> v(count);
  for (float& x : v) x = uniform();
  return v;
}

// Exactly `size` bytes at an aligned address, so that one byte too far is an error.
struct Exact {
  explicit Exact(size_t size) : data(memory(size), std::free) {}
  explicit Exact(size_t size, int fill) : Exact(size) { std::memset(data.get(), fill, size); }
  std::unique_ptr<uint8_t, void (*)(void*)> data;
  uintptr_t address() const { return (uintptr_t)data.get(); }

 private:
  static uint8_t* memory(size_t size) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, size)) throw std::bad_alloc();
    return (uint8_t*)p;
  }
};

constexpr uint16_t kHalfOne = 0x3c00, kHalfQuarter = 0x3400;  // fp16 1 and 0.25

constexpr bool is_planes(Layout layout) { return traits(layout).family == Family::planes; }
constexpr bool has_scales(Layout layout) { return traits(layout).coded() || is_planes(layout); }
// Whether a linear of the layout may have minimums.
constexpr bool takes_minimums(Layout layout) { return traits(layout).minimums != Minimums::never; }

bool is_table(Layout layout) { return traits(layout).family == Family::table; }
bool is_vectors(Layout layout) { return traits(layout).family == Family::vectors; }

// Tables of vectors, of 16 and 256 entries in two books, for `in` columns.
struct PackedVectors {
  std::vector<uint16_t> main, rest, scales, offsets;
  std::vector<uint8_t> books;
  PackedVectors(int length, int in)
      : main((size_t)(2 * 256 * length), kHalfOne),
        rest((size_t)(2 * 16 * length), kHalfQuarter),
        scales((size_t)in, kHalfQuarter),
        offsets((size_t)in, kHalfOne) {
    for (auto& x : main) x = (uint16_t)(0x3000 + random_source() % 0x800);
    for (int c = 0; c < in; c++) books.push_back((uint8_t)(random_source() % 2));
  }
  Vectors view() const { return {main.data(), rest.data(), scales.data(), offsets.data(), books.data(), 8, 4}; }
};

// A linear of any layout; scales of groups are 0.25 and minimums, if any, are 1 (of superblocks 2^-9 and 2^-8). points:
// with zero points in place of minimums.
struct Packed {
  Layout layout;
  int out, in, group;
  bool minimum, points;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> table, table_scales;
  std::vector<uint16_t> scales, minimums;
  std::vector<int8_t> row_tables;
  PackedVectors vectors;
  Packed(Layout layout, int out, int in, int group, bool minimum, bool points = false)
      : layout(layout),
        out(out),
        in(in),
        group(group),
        minimum(minimum),
        points(points),
        vectors(traits(layout).length, in) {
    const size_t tiles = ((size_t)out + 15) / 16, columns = two_levels(layout) ? 256 : (size_t)group,
                 groups = ((size_t)in + columns - 1) / columns;
    Linear sized;
    sized.layout = layout, sized.out = out, sized.in = in, sized.vectors = vectors.view();
    codes.resize(traits(layout).family == Family::plain ? (size_t)out * tile_bytes(sized) / 16
                                                        : tiles * tile_bytes(sized));
    for (auto& c : codes) c = (uint8_t)random_source();
    if (is_planes(layout)) clear_columns_behind(sized.tiles());
    if (layout == Layout::f32) {
      const auto weights = floats((size_t)out * (size_t)in);
      std::memcpy(codes.data(), weights.data(), codes.size());
    }
    if (layout == Layout::bf16 || layout == Layout::f16 || layout == Layout::bf16_2_4)
      for (size_t i = 1; i < codes.size(); i += 2)
        codes[i] = (uint8_t)((layout == Layout::f16 ? 0x34 : 0x3e) | (codes[i] & 0x83));  // of moderate size
    if (is_table(layout))
      table = floats((size_t)1 << codes_of(layout, false).bits()), table_scales.assign(tiles * groups * 16, 0.25f);
    row_tables.resize(tiles * 16 << codes_of(layout, false).bits());
    for (auto& value : row_tables) value = (int8_t)random_source();
    if (!has_scales(layout)) return;
    if (points) zeros.resize(tiles * groups * 16);
    for (auto& zero : zeros) zero = (uint8_t)(random_source() % (1 << codes_of(layout, true).bits()));
    scales.assign(tiles * groups * 16, two_levels(layout) ? 0x1800 : kHalfQuarter),
        minimums.assign(tiles * groups * 16, two_levels(layout) ? 0x1c00 : kHalfOne);
  }
  // Bit planes have no zero: columns that only fill a block are zero bits, as in `formats/bit_planes.py`.
  void clear_columns_behind(int tiles) {
    const size_t block = (size_t)codes_of(layout, false).bytes(), blocks = codes.size() / block / (size_t)tiles;
    for (size_t tile = 0; in % 32 && tile < (size_t)tiles; tile++)
      for (size_t i = 0; i < block; i++) {
        const int left = std::clamp(in % 32 - 8 * (int)(i % 4), 0, 8);  // columns of this byte
        codes[(tile * blocks + blocks - 1) * block + i] &= (uint8_t)((1 << left) - 1);
      }
  }
  Linear linear() const {
    Linear w = make_linear(layout, (uintptr_t)codes.data(), (uintptr_t)scales.data(),
                           minimum ? (uintptr_t)minimums.data() : 0, 0, out, in, group);
    if (points) w.zeros = zeros.data();
    if (is_planes(layout)) w.scales = scales.data(), w.activation_bits = 8;
    if (is_table(layout)) w.table = table.data(), w.table_scales = table_scales.data();
    if (is_vectors(layout)) w.vectors = vectors.view();
    w.row_tables = row_tables.data();
    return w;
  }
};

void test_matmul(const Packed& p, int m) {
  const Linear w = p.linear();
  const auto x = floats((size_t)m * (size_t)p.in);
  std::vector<float> y((size_t)m * (size_t)p.out), row((size_t)p.in), one((size_t)p.out);
  matmul(w, x.data(), y.data(), m);
  for (int r = 0; r < p.out; r++) {
    linear_row(w, r, row.data());
    for (int i = 0; i < m; i++) {
      double sum = 0, size = 0;
      for (int c = 0; c < p.in; c++) {
        const double term = (double)row[(size_t)c] * (double)x[(size_t)i * (size_t)p.in + (size_t)c];
        sum += term, size += std::fabs((double)row[(size_t)c]);
      }
      const double error = std::fabs(sum - (double)y[(size_t)i * (size_t)p.out + (size_t)r]);
      expect(error <= (reads(p.layout) == Reads::plain && !is_planes(p.layout) ? size * 1e-6 : size / 127) + 1e-4,
             std::string("matmul ") + name_of(p.layout) + " " + std::to_string(p.out) + "x" + std::to_string(p.in) +
                 " m " + std::to_string(m));
    }
  }
  matmul(w, x.data() + (size_t)(m - 1) * (size_t)p.in, one.data(), 1);
  expect(std::memcmp(one.data(), y.data() + (size_t)(m - 1) * (size_t)p.out, one.size() * sizeof(float)) == 0,
         "a row alone differs from the row in its batch");
}

void test_matmuls() {
  for (int i = 0; i < kLayouts; i++)
    for (bool minimum : {false, true}) {
      const Layout layout = (Layout)i;
      if (minimum ? !takes_minimums(layout) : sub_scales(layout).minimums) continue;
      if (two_levels(layout)) {
        for (auto [out, in] : {std::pair{1, 256}, {17, 512}, {50, 768}})
          for (int m : {1, 2, 7, 19}) test_matmul(Packed(layout, out, in, 0, minimum), m);
        continue;
      }
      const int fours = traits(layout).codes.sparse ? 4 : 1;  // columns come in whole fours
      for (auto [out, in, group] :
           {std::tuple{1, fours, 32}, {17, 32 + fours, 32}, {50, 100, 64}, {31, 160, 128}, {16, 2 * fours, 32}})
        for (int m : {1, 2, 7, 19}) test_matmul(Packed(layout, out, in, group, minimum), m);
    }
  for (Layout layout : {Layout::int2, Layout::int3, Layout::int4, Layout::int8})
    for (auto [out, in, group] : {std::tuple{1, 1, 32}, {17, 33, 32}, {50, 160, 128}})
      for (int m : {1, 7, 19}) test_matmul(Packed(layout, out, in, group, false, true), m);
}

// Any bytes of a file come back from the arrays that they became, and lanes behind the last row are zero.
// Trains of two and three sites against their rows, one by one; a bias is added once.
void test_trains() {
  for (Layout layout : {Layout::bf16, Layout::int8, Layout::f32})
    for (bool three : {false, true}) {
      std::vector<Packed> packed;
      if (three)
        packed.emplace_back(layout, 2 * 5, 12, 32, false), packed.emplace_back(layout, 3 * 4, 2 * 5, 32, false);
      else packed.emplace_back(layout, 6 * 4, 24, 32, false);
      packed.emplace_back(layout, 16, 3 * 4, 32, false);
      std::vector<TensorTrain::Site> sites{{packed[0].linear(), three ? 2 : 6, three ? 12 : 24, 0}};
      if (three) sites.push_back({packed[1].linear(), 3, 2, 0});
      sites.push_back({packed.back().linear(), 16, 3, 0});
      const TensorTrain train = make_train(sites, 96, 72);
      const auto bias = floats(96);
      Linear w;
      w.layout = Layout::f32, w.out = 96, w.in = 72, w.train = &train, w.bias = bias.data();
      for (int m : {1, 7, 19}) {
        const auto x = floats((size_t)m * 72);
        std::vector<float> y((size_t)m * 96), row(72), one(96);
        matmul(w, x.data(), y.data(), m);
        double error = 0, size = 0;
        for (int r = 0; r < 96; r++) {
          linear_row(w, r, row.data());
          for (int i = 0; i < m; i++) {
            double sum = (double)bias[(size_t)r];
            for (size_t c = 0; c < 72; c++) sum += (double)row[c] * (double)x[(size_t)i * 72 + c];
            error += std::fabs(sum - (double)y[(size_t)i * 96 + (size_t)r]), size += std::fabs(sum);
          }
        }
        expect(error <= (layout == Layout::f32 ? 1e-5 : 0.03) * size, std::string("train of ") + name_of(layout));
        matmul(w, x.data() + (size_t)(m - 1) * 72, one.data(), 1);
        expect(std::memcmp(one.data(), y.data() + (size_t)(m - 1) * 96, 96 * sizeof(float)) == 0,
               "a row of a train alone differs from the row in its batch");
      }
      bool refused = false;
      try {
        make_train(sites, 96, 36);
      } catch (const std::invalid_argument&) { refused = true; }
      expect(refused, "a train of another width is refused");
    }
}

void test_repack() {
  for (const char* name :
       {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "BF16"}) {
    const FileType& type = file_type(name);
    for (auto [rows, units] : {std::pair{1, 1}, {37, 3}}) {
      Linear sized;
      sized.layout = type.layout, sized.out = rows, sized.in = units * type.columns;
      const size_t tiles = (size_t)sized.tiles(), width = (size_t)(units * type.bytes), stride = width + 5;
      Exact raw(stride * (size_t)rows, 0), back(stride * (size_t)rows, 0), codes(tiles * tile_bytes(sized), 0xff);
      Exact scales(tiles * (size_t)units * 32, 0xff), minimums(tiles * (size_t)units * 32, 0xff);
      for (size_t i = 0; i < stride * (size_t)rows; i++)
        if (i % stride < width) raw.data.get()[i] = (uint8_t)random_source();
      const LinearArrays arrays{codes.data.get(), (uint16_t*)scales.data.get(),
                                type.minimums ? (uint16_t*)minimums.data.get() : nullptr};
      repack(type, {raw.data.get(), stride, rows, sized.in}, arrays);
      unpack(type, arrays, {back.data.get(), stride, rows, sized.in});
      expect(std::memcmp(raw.data.get(), back.data.get(), stride * (size_t)rows) == 0,
             std::string("bytes of ") + name + " changed");
      if (has_scales(type.layout))
        expect(arrays.scales[tiles * (size_t)units * 16 - 1] == 0,
               std::string("a lane without a row of ") + name + " is not zero");
    }
  }
  expect_refused("an unknown type", [] { file_type("IQ1_S"); });
}

// A slab of any bytes whose parameters are finite.
Exact slab(Format format, int capacity, int dim) {
  const SlabLayout at = slab_layout(format, (size_t)capacity, (size_t)dim);
  Exact e(at.bytes, 0x3c);
  if (format_bits(format))
    for (size_t i = 0; i < at.key_params; i++) e.data.get()[i] = (uint8_t)random_source();
  return e;
}

#include "attention_test.hpp"

// A model of two layers with odd sizes: rows one by one equal a chunk.
void test_plan(Layout layout, int dim) {
  const int hidden = 70, inner = 50, vocabulary = 37, heads = 2, rows = 21, layers = 2, half = std::min(15, dim / 2);
  Plan plan(PlanShape{rows, {(size_t)layers, LayerWidths{heads, 1, dim}}});
  std::vector<Packed> packed;
  packed.reserve(20);
  const auto linear = [&](int out, int in) {
    packed.emplace_back(layout, out, in, 32, takes_minimums(layout));
    const Packed& p = packed.back();
    return plan.add_linear(p.linear());
  };
  const std::vector<float> norm(256, 0.1f);
  const uintptr_t n = (uintptr_t)norm.data();
  const int h = plan.add_buffer(hidden), q = plan.add_buffer(heads * dim), k = plan.add_buffer(dim),
            v = plan.add_buffer(dim);
  const int attended = plan.add_buffer(heads * dim), act = plan.add_buffer(inner), branch = plan.add_buffer(hidden);
  const int embedding = linear(vocabulary, hidden);
  plan.add_embed(embedding, 0.5f, h);
  for (int layer = 0; layer < layers; layer++) {
    plan.add_project(layer, h, n, 1e-5f, {linear(heads * dim, hidden), linear(dim, hidden), linear(dim, hidden)},
                     {q, k, v}, false);
    plan.add_rotate(layer, q, k, v, n, n, 1e-5f, 0, 2 * half);
    plan.add_attend(layer, q, attended, 0.1f, layer ? 5 : 0, 0.0f);
    plan.add_project(layer, attended, 0, 0, {linear(hidden, heads * dim)}, {branch}, false);
    plan.add_rows(layer, branch, n, 1e-5f, -1, h);
    plan.add_gated(layer, h, n, 1e-5f, linear(inner, hidden), linear(inner, hidden), act, layer);
    plan.add_project(layer, act, 0, 0, {linear(hidden, inner)}, {h}, true);
  }
  plan.add_logits(h, n, 1e-5f, embedding, 20.0f);
  const auto feed = [&](int step) {
    View view(layers, 1, dim);
    std::vector<Exact> memory;
    for (int layer = 0; layer < layers; layer++) {
      memory.push_back(slab(Format::bf16, 64, dim));
      view.push(layer, 0, memory.back().address(), 0, 64, (int)Format::bf16, 0, false);
    }
    std::vector<float> logits((size_t)rows * vocabulary);
    for (int start = 0; start < rows; start += step) {
      const int count = std::min(step, rows - start);
      std::vector<int32_t> tokens, wanted, best((size_t)count);
      std::vector<float> rotation(2 * (size_t)count * (size_t)half);
      for (int i = 0; i < count; i++) {
        tokens.push_back((start + i) % vocabulary), wanted.push_back(i);
        for (int c = 0; c < half; c++) {
          rotation[(size_t)(2 * i * half + c)] = std::cos((float)(start + i) / (float)(c + 1));
          rotation[(size_t)((2 * i + 1) * half + c)] = std::sin((float)(start + i) / (float)(c + 1));
        }
      }
      Step s;
      s.rows = count, s.tokens = tokens.data(), s.views = {&view}, s.counts = {count}, s.rotation = {rotation.data()};
      s.last_layer = layers, s.logit_rows = wanted.data(), s.logit_count = count;
      s.logits = logits.data() + (size_t)start * vocabulary, s.arg_max = best.data();
      plan.run(s);
    }
    return logits;
  };
  const auto whole = feed(rows);
  for (float x : whole) expect(std::isfinite(x), "logits are not finite");
  for (int step : {1, 2, 8})
    expect(std::memcmp(feed(step).data(), whole.data(), whole.size() * sizeof(float)) == 0,
           "chunks of " + std::to_string(step) + " differ");
}

#include "reading_test.hpp"
#include "step_test.hpp"
#include "pool_test.hpp"

}  // namespace

int main() {
  test_pool();
  test_crew();
  test_busy_pool();
  for (const char* isa : {"avx512", "avx2", "portable"}) {
    if (!isa_available(isa)) {
      std::printf("%s: not on this processor\n", isa);
      continue;
    }
    force_isa(isa);
    test_matmuls();
    test_trains();
    for (auto [dim, group, kv_heads] :
         {std::tuple{64, 3, 2}, {128, 1, 1}, {192, 7, 1}, {16, 2, 1}, {18, 1, 1}, {80, 3, 1}, {250, 5, 1}})
      for (int window : {0, 50}) test_attention(dim, group, kv_heads, window, window ? 5.0f : 0.0f);
    for (bool mean : {false, true})
      test_witness(64, 3, 0.0f, mean), test_witness(128, 1, 5.0f, mean), test_witness(42, 2, 0.0f, mean);
    for (int page : {16, 32, 64}) test_selected_pages(64, 3, page), test_selected_pages(42, 2, page);
    for (int together : {1, 2, 3, 4}) test_streamed_heads(1, together), test_streamed_heads(3, together);
    for (int dim : {16, 18, 64, 66, 94, 96, 128})
      for (Format format : {Format::f32, Format::int8, Format::int4, Format::int2, Format::int4g16, Format::int2g16})
        test_last_channel(format, dim);
    for (int dim : {64, 30}) test_view(dim);
    for (int dim : {2, 64, 80})
      for (int format = 0; format < kFormats; format++) test_read_slab((Format)format, dim);
    for (int dim : {1, 18, 64, 130})
      for (bool biased : {false, true}) test_attention_map(dim, biased, biased ? 5.0f : 0.0f);
    for (int dim : {64, 80}) test_gather(dim);
    for (Layout layout : {Layout::int4, Layout::int8, Layout::bf16, Layout::f16, Layout::f32})
      for (int dim : {64, 42}) SmallPlan::dim = dim, test_plan(layout, dim), test_step(layout);
    test_repack();
    SmallPlan::dim = 64;
    test_growing_partials();
    test_late_arrival();
    expect(read_bandwidth(1, 1) > 0 && gemm_rate(1) > 0, "measurements");
    std::printf("%s: done\n", isa);
  }
  std::printf(failures ? "%d failures\n" : "all passed\n", failures);
  return failures ? 1 : 0;
}
