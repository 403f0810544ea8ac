// Attention, its views and what is gathered from them, against slow versions in double precision. Part of
// native_test.cpp, inside its namespace.
#pragma once

void test_attention(int dim, int group, int kv_heads, int window, float softcap) {
  View view(1, kv_heads, dim);
  std::vector<Exact> memory;
  std::vector<float> bias = floats(64);
  for (int head = 0; head < kv_heads; head++)
    for (auto [format, tokens, capacity] : {std::tuple{Format::int8, 130, 192},
                                            {Format::f32, 5, 64},
                                            {Format::int4, 64, 64},
                                            {Format::int2, 33, 64},
                                            {Format::int2g16, 70, 128},
                                            {Format::int4g16, 17, 64},
                                            {Format::bf16, 300, 320}}) {
      memory.push_back(slab(format, capacity, dim));
      view.push(0, head, memory.back().address(), tokens, capacity, (int)format,
                capacity == 64 ? (uintptr_t)bias.data() : 0, true);
    }
  const int heads = group * kv_heads, rows = 41, slots = view.tokens(0, 0);
  const size_t row = (size_t)heads * (size_t)dim;
  const auto q = floats(rows * row);
  std::vector<float> out(rows * row), last(row), sums((size_t)heads * (size_t)slots);
  const auto run = [&](int n, const float* from, float* to, float* accumulate) {
    Attention attention;
    AttentionBuffers buffers;
    attention.begin();
    attention.add(view, 0, {heads, 0.1f, softcap, window, accumulate, slots}, n, from, to);
    attention.prepare(buffers, Pool::shared().threads());
    Pool::shared().run(Attention::scratch_bytes(dim, group), [&](Worker& w) { attention.run(w); });
  };
  run(rows, q.data(), out.data(), sums.data());
  run(1, q.data() + (rows - 1) * row, last.data(), nullptr);
  expect(std::memcmp(last.data(), out.data() + (rows - 1) * row, row * sizeof(float)) == 0,
         "attention of a row alone differs from the row in its chunk");
  double total = 0;
  for (float s : sums) total += (double)s;
  expect(std::fabs(total - rows * heads) < 1e-2, "probabilities do not sum to one");
  for (float x : out) expect(std::isfinite(x), "attention is not finite");
}

// Slots that lie in a file, read into two buffers head group by head group: the same bits as in memory, sums included;
// and a file that ends early is told.
void test_streamed_heads(int group, int together) {
  const int dim = 64, kv_heads = 4, heads = group * kv_heads, capacity = 320, tokens = 300, rows = 3;
  View there(1, kv_heads, dim), away(1, kv_heads, dim);
  std::vector<Exact> memory;
  for (int head = 0; head < kv_heads; head++) memory.push_back(slab(Format::bf16, capacity, dim));
  const int64_t bytes = (int64_t)slab_layout(Format::bf16, capacity, dim).bytes;
  for (const Exact& one : memory)  // no two alike
    for (int64_t i = 0; i < bytes / 2; i++)
      ((uint16_t*)one.address())[i] = (uint16_t)(0x3e00u + random_source() % 0x180u + (random_source() % 2 << 15));
  std::FILE* const file = std::tmpfile();
  for (const Exact& one : memory) std::fwrite((const void*)one.address(), 1, (size_t)bytes, file);
  std::fflush(file);
  std::vector<Exact> buffers;
  for (int i = 0; i < 2; i++) buffers.emplace_back((size_t)(bytes * together));
  const auto push = [&](int first, bool cut) {
    const int last = std::min(first + together, kv_heads), buffer = first / together % 2;
    StreamGroup own{first, last, fileno(file), false, buffer, {}};
    const int64_t all = bytes * (last - first);
    own.reads.push_back({bytes * first + (cut ? 1 : 0), all, all, (uint8_t*)buffers[(size_t)buffer].address()});
    for (int head = first; head < last && !cut; head++)
      away.push(0, head, buffers[(size_t)buffer].address() + (uintptr_t)(bytes * (head - first)), tokens, capacity,
                (int)Format::bf16, 0, true);
    away.stream(0, own);
  };
  for (int head = 0; head < kv_heads; head++)
    there.push(0, head, memory[(size_t)head].address(), tokens, capacity, (int)Format::bf16, 0, true);
  for (int first = 0; first < kv_heads; first += together) push(first, false);
  const size_t row = (size_t)heads * (size_t)dim;
  const auto q = floats(rows * row);
  const auto run = [&](View& view, std::vector<float>& out, std::vector<float>& sums) {
    Attention attention;
    AttentionBuffers own;
    std::vector<View*> views{&view};
    std::unique_ptr<Streams> streams;
    if (Streams::wanted(views)) streams = std::make_unique<Streams>(views, std::vector<int>{0});
    attention.begin(streams.get(), streams ? streams->stages(0) : nullptr);
    attention.add(view, 0, {heads, 0.1f, 0.0f, 0, sums.data(), tokens}, rows, q.data(), out.data());
    attention.prepare(own, Pool::shared().threads());
    Pool::shared().run(Attention::scratch_bytes(dim, group), [&](Worker& w) { attention.run(w); });
    return streams ? streams->error() : "";
  };
  const auto same = [](const std::vector<float>& one, const std::vector<float>& other) {
    return std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
  };
  std::vector<float> expected(rows * row), found(rows * row), sums((size_t)(heads * tokens)), other(sums.size());
  run(there, expected, sums);
  expect(run(away, found, other).empty() && same(found, expected) && same(other, sums),
         "slots that were read from a file differ from those in memory");
  expect(away.bytes_read() == bytes * kv_heads, "not every byte was read once");
  away.clear(0, -1);
  expect(!away.streams(), "a cleared layer still reads");
  for (int head = 0; head < kv_heads; head++)
    away.push(0, head, memory[(size_t)head].address(), tokens, capacity, (int)Format::bf16, 0, true);
  for (int first = 0; first < kv_heads; first += together) push(first, true);
  expect(run(away, found, other).find("ends before them") != std::string::npos, "a file that ends early went unseen");
  std::fclose(file);
}

// Rows that select pages, alone and several of a page together, over blocks of all formats that are full or not: the
// same bits; and not those of a row that sees everything.
void test_selected_pages(int dim, int group, int page) {
  const int kv_heads = 2, heads = group * kv_heads, rows = 5;
  View view(1, kv_heads, dim);
  std::vector<Exact> memory;
  std::vector<float> bias = floats(64);
  for (float& one : bias) one = one > 0.0f ? -INFINITY : 0.0f;  // holes
  for (int head = 0; head < kv_heads; head++)
    for (auto [format, tokens, capacity] : {std::tuple{Format::f32, 5, 64},
                                            {Format::int8, 130, 192},
                                            {Format::int2, 33, 64},
                                            {Format::bf16, 300 + head, 320}}) {
      memory.push_back(slab(format, capacity, dim));
      view.push(0, head, memory.back().address(), tokens, capacity, (int)format,
                format == Format::int2 ? (uintptr_t)bias.data() : 0, format != Format::bf16);
    }
  const size_t row = (size_t)heads * (size_t)dim;
  const auto q = floats(rows * row);
  std::vector<float> out(rows * row), last(row), whole(row);
  const auto run = [&](int n, const float* from, float* to, bool decodes) {
    Attention attention;
    AttentionBuffers buffers;
    Attention::Call call{heads, 1e-3f, 0.0f, 0};  // every slot that is seen weighs something
    call.decodes = decodes;
    attention.begin();
    attention.add(view, 0, call, n, from, to);
    attention.prepare(buffers, Pool::shared().threads());
    Pool::shared().run(Attention::scratch_bytes(dim, group), [&](Worker& w) { attention.run(w); });
  };
  view.select_pages(0, page, 3);
  view.hold_bounds(view.most_blocks());
  run(rows, q.data(), out.data(), true);
  run(1, q.data() + (rows - 1) * row, last.data(), true);
  run(1, q.data() + (rows - 1) * row, whole.data(), false);
  expect(std::memcmp(last.data(), out.data() + (rows - 1) * row, row * sizeof(float)) == 0,
         "a row that selects pages differs alone");
  expect(std::memcmp(last.data(), whole.data(), row * sizeof(float)) != 0, "a row that selects pages saw everything");
  for (float x : out) expect(std::isfinite(x), "attention to selected pages is not finite");
  view.truncate(0, 40);
  run(1, q.data(), last.data(), true);
  for (float x : last) expect(std::isfinite(x), "attention to selected pages of a shorter view is not finite");
}

// Values of one make every channel of a result one, the last as the first; keys that differ in the last channel alone
// attend to their own slot.
void test_last_channel(Format format, int dim) {
  const int tokens = 70;
  View view(1, 1, dim);
  const SlabLayout at = slab_layout(Format::f32, 128, (size_t)dim);
  Exact from(at.bytes, 0), to(slab_layout(format, 128, (size_t)dim).bytes, 0xff);
  float *keys = (float*)from.data.get(), *values = (float*)(from.data.get() + at.values);
  for (int i = 0; i < tokens * dim; i++) values[i] = 1.0f;
  for (int i = 0; i < tokens; i++) keys[(i / kPage * dim + dim - 1) * kPage + i % kPage] = i == 66 ? 200.0f : 0.0f;
  if (format_bits(format))
    expect(compress({from.address(), at.bytes, Format::f32, 128},
                    {to.address(), slab_layout(format, 128, (size_t)dim).bytes, format, 128}, 1, dim, 0, tokens),
           "compress");
  view.push(0, 0, format_bits(format) ? to.address() : from.address(), tokens, 128, (int)format, 0, true);
  std::vector<float> q((size_t)dim, 1.0f), out((size_t)dim), sums((size_t)tokens);
  Attention attention;
  AttentionBuffers buffers;
  attention.begin();
  attention.add(view, 0, {1, 1.0f, 0.0f, 0, sums.data(), tokens}, 1, q.data(), out.data());
  attention.prepare(buffers, Pool::shared().threads());
  Pool::shared().run(Attention::scratch_bytes(dim, 1), [&](Worker& w) { attention.run(w); });
  const std::string what = " of format " + std::to_string((int)format) + " and dimension " + std::to_string(dim);
  for (float x : out) expect(std::fabs(x - 1.0f) < 1e-2f, "a channel" + what);
  expect(std::fabs(sums[66] - 1.0f) < 1e-3f, "the last channel" + what);
}

// Rows in two pieces give each slot what they give it together; heads judge different slots, and one none.
void test_witness(int dim, int group, float softcap, bool mean) {
  const int kv_heads = 3, heads = group * kv_heads, rows = 75, stride = 450;
  std::vector<Exact> memory;
  View view(1, kv_heads, dim), shorter(1, kv_heads, dim);
  for (int head = 0; head < kv_heads; head++)
    for (auto [format, tokens, capacity] : {std::tuple{Format::int8, 130, 192},
                                            {Format::f32, 5, 64},
                                            {Format::int2, 33, 64},
                                            {Format::int4g16, 17, 64},
                                            {Format::bf16, 300 + head, 320}}) {
      memory.push_back(slab(format, capacity, dim));
      for (View* one : {&view, &shorter})
        one->push(0, head, memory.back().address(), tokens, capacity, (int)format, 0, true);
    }
  shorter.truncate(0, rows - 20);
  const std::vector<Judged> judged = {{4, 4, 390}, {0, 9, 411}, {7, 30, 30}};
  const auto q = floats((size_t)rows * (size_t)heads * (size_t)dim);
  std::vector<float> together((size_t)kv_heads * (size_t)stride), pieces = together;
  const auto run = [&](View& from, int first, int count, std::vector<float>& to) {
    witness(from, 0, {count, heads, first + count, 0.1f, softcap, mean}, judged,
            q.data() + (size_t)first * (size_t)heads * (size_t)dim, to.data(), stride);
  };
  run(view, 0, rows, together);
  run(shorter, 0, 20, pieces), run(view, 20, rows - 20, pieces);
  expect(std::memcmp(together.data(), pieces.data(), together.size() * sizeof(float)) == 0,
         "what rows attend to differs when they come in pieces");
  for (float p : pieces) expect(p >= 0 && p <= 1.001f, "what a row gives is no probability");
  expect_refused("judged slots among the forced ones", [&] {
    witness(shorter, 0, {20, heads, 30, 0.1f, softcap, mean}, {{0, 0, 401}, judged[1], judged[2]}, q.data(),
            pieces.data(), stride);
  });
}

void test_view(int dim) {
  View view(1, 1, dim);
  std::vector<Exact> memory;
  for (int i = 0; i < 2; i++) {
    memory.push_back(slab(Format::bf16, 64, dim));
    view.push(0, 0, memory.back().address(), 0, 64, (int)Format::bf16, 0, false);
  }
  const auto x = floats((size_t)dim);
  view.reserve(0, 100);
  for (int i = 0; i < 100; i++) view.write(0, 0, i, x.data(), x.data());
  view.truncate(0, 90);
  expect(view.tokens(0, 0) == 10 && view.room(0) == 118, "truncate");
  expect_refused("too many tokens", [&] { view.reserve(0, 119); });
  expect_refused("a span without alignment", [&] { view.push(0, 0, 8, 0, 64, 1, 0, false); });
  expect_refused("a layer outside", [&] { view.push(1, 0, 64, 0, 64, 1, 0, false); });
  for (int bad : {0, 14, 65, 258, 1088})
    expect_refused("a head dimension of " + std::to_string(bad), [&] { View(1, 1, bad); });
  expect_refused("part of a superblock", [] { make_linear(Layout::q6_k, 64, 64, 0, 0, 16, 64, 0); });
  expect_refused("minimums that are missing", [] { make_linear(Layout::q4_k, 64, 64, 0, 0, 16, 256, 0); });
  expect_refused("minimums of a table", [] { make_linear(Layout::iq4_nl, 64, 64, 64, 0, 16, 64, 32); });
  expect_refused("an unknown layout", [] { layout_of("int7"); });
  expect_refused("columns that are no fours", [] { make_linear(Layout::int8_2_4, 64, 64, 0, 0, 16, 66, 32); });
  expect_refused("a group of 33", [] { make_linear(Layout::int4, 64, 64, 0, 0, 16, 64, 33); });
}

// Slots of two slabs, one after the other, equal those that were picked one by one.
void test_gather(int dim) {
  const size_t d = (size_t)dim;
  std::vector<Exact> from;
  from.push_back(slab(Format::bf16, 128, dim)), from.push_back(slab(Format::bf16, 64, dim));
  const std::vector<int64_t> first = {0, 1, 63, 64, 127}, second = [] {
    std::vector<int64_t> all(62);
    for (size_t i = 0; i < all.size(); i++) all[i] = (int64_t)i + 1;
    return all;
  }();
  Exact to(slab_layout(Format::bf16, 128, d).bytes, 0);
  gather({{to.address(),
           128,
           {{from[0].address(), 128, (uintptr_t)first.data(), (int)first.size()},
            {from[1].address(), 64, (uintptr_t)second.data(), (int)second.size()}}}},
         Format::bf16, dim);
  bool same = true;
  const auto key = [&](const Exact& slab, size_t slot, size_t c) {
    return ((const uint16_t*)slab.data.get())[slot / kPage * kPage * d + c * kPage + slot % kPage];
  };
  const auto value = [&](const Exact& slab, size_t capacity, size_t slot, size_t c) {
    return ((const uint16_t*)(slab.data.get() + slab_layout(Format::bf16, capacity, d).values))[slot * d + c];
  };
  for (size_t i = 0; i < first.size() + second.size(); i++) {
    const bool early = i < first.size();
    const size_t slot = (size_t)(early ? first[i] : second[i - first.size()]);
    for (size_t c = 0; c < d; c++)
      same &= key(to, i, c) == key(from[!early], slot, c) &&
              value(to, 128, i, c) == value(from[!early], early ? 128 : 64, slot, c);
  }
  expect(same, "gathered slots differ");
  const int64_t outside = 64;
  expect_refused("a slot outside its slab", [&] {
    gather({{to.address(), 128, {{from[1].address(), 64, (uintptr_t)&outside, 1}}}}, Format::bf16, dim);
  });
  expect_refused("codes", [&] { gather({}, Format::int4, dim); });
}
