// Plans of one step with experts, adapters, trees and arrivals. Part of native_test.cpp, inside its namespace.

// A small plan over hidden states that the caller gives: attention and, where wanted, a mixture of experts in each
// layer.
struct SmallPlan {
  static constexpr int hidden = 70, heads = 2, inner = 50, experts = 5, shared = 33, low = 3;
  static inline int dim = 64;
  SmallPlan(Layout layout, int rows, int layers, bool mixture)
      : layout(layout),
        layers(layers),
        plan(PlanShape{rows, {(size_t)layers, LayerWidths{heads, 1, dim}}}),
        router(floats(experts * hidden)),
        gate(floats(hidden)),
        norm(128, 0.1f) {
    packed.reserve((size_t)(layers * (4 + 3 * experts + 3)));
    const int h = plan.add_buffer(hidden), q = plan.add_buffer(heads * dim), k = plan.add_buffer(dim),
              v = plan.add_buffer(dim), attended = plan.add_buffer(heads * dim);
    const int scores = plan.add_buffer(experts), one = plan.add_buffer(1), sum = plan.add_buffer(hidden),
              act = plan.add_buffer(shared), more = plan.add_buffer(hidden);
    const uintptr_t n = (uintptr_t)norm.data();
    for (int layer = 0; layer < layers; layer++) {
      plan.add_await(layer);
      plan.add_project(layer, h, n, 1e-5f, {linear(heads * dim, hidden), linear(dim, hidden), linear(dim, hidden)},
                       {q, k, v}, false);
      plan.add_norm_rows(layer, {q, k}, {n, n}, 1e-5f);
      plan.add_rotate(layer, q, k, v, 0, 0, 1e-5f, 0, 0);
      plan.add_attend(layer, q, attended, 0.1f, 0, 0.0f);
      plan.add_project(layer, attended, 0, 0, {linear(hidden, heads * dim)}, {h}, true);
      if (!mixture) continue;
      plan.add_project(layer, h, n, 1e-5f, {plain(experts, router), plain(1, gate)}, {scores, one}, false);
      MixtureCall call{scores, sum, layer ? h : -1, {}, {}, {}, 2, layer == 0, layer};
      for (int e = 0; e < experts; e++)
        call.gates.push_back(linear(inner, hidden)), call.ups.push_back(linear(inner, hidden)),
            call.downs.push_back(linear(hidden, inner));
      plan.add_mixture(layer, h, n, 1e-5f, call);
      if (layer) continue;
      plan.add_gated(layer, h, n, 1e-5f, linear(shared, hidden), linear(shared, hidden), act, 0);
      plan.add_project(layer, act, 0, 0, {linear(hidden, shared)}, {more}, false);
      plan.add_rows(layer, more, 0, 0, one, sum);
      plan.add_rows(layer, sum, n, 1e-5f, -1, h);
    }
  }
  int linear(int out, int in) {
    packed.emplace_back(layout, out, in, 32, takes_minimums(layout));
    const Packed& p = packed.back();
    return plan.add_linear(p.linear());
  }
  int plain(int out, const std::vector<float>& weights) {
    return plan.add_linear(make_linear(Layout::f32, (uintptr_t)weights.data(), 0, 0, 0, out, hidden, 0));
  }

  Layout layout;
  int layers;
  Plan plan;
  std::vector<Packed> packed;
  std::vector<float> router, gate, norm;
};

// A view whose layers hold sealed slots of their own number, then an open page.
struct SmallView {
  explicit SmallView(const std::vector<int>& slots) : view((int)slots.size(), 1, SmallPlan::dim) {
    for (int layer = 0; layer < (int)slots.size(); layer++) {
      const int capacity = (slots[(size_t)layer] + 63) / 64 * 64;
      if (capacity)
        memory.push_back(slab(Format::bf16, capacity, SmallPlan::dim)),
            view.push(layer, 0, memory.back().address(), slots[(size_t)layer], capacity, (int)Format::bf16, 0, true);
      memory.push_back(slab(Format::bf16, 64, SmallPlan::dim));
      view.push(layer, 0, memory.back().address(), 0, 64, (int)Format::bf16, 0, false);
    }
  }
  View view;
  std::vector<Exact> memory;
};

Step small_step(SmallPlan& p, View& view, std::vector<float>& rows) {
  Step s;
  s.rows = (int)rows.size() / SmallPlan::hidden, s.hidden = rows.data();
  s.views = {&view}, s.counts = {s.rows}, s.rotation = {rows.data()}, s.last_layer = p.layers;
  return s;
}

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Rows one by one, in pieces, as a tree of one path, and with adapters that add nothing: the same bits.
void test_step(Layout layout) {
  const int count = 37, width = SmallPlan::hidden;
  SmallPlan p(layout, count, 2, true);
  const auto start = floats((size_t)count * (size_t)width);
  const std::vector<float> down((size_t)(3 * width), 0.0f), up((size_t)(128 * 3), 1.0f);
  AdapterTable table(p.plan.linears.size());
  table.set(0, {down.data(), up.data(), 3, 1.0f});
  Adapters adapters({&table}, p.plan.linears);
  const auto feed = [&](int step, bool tree, bool adapted) {
    SmallView v({0, 0});
    std::vector<float> all;
    for (int first = 0; first < count; first += step) {
      const int rows = std::min(step, count - first);
      std::vector<float> piece(start.begin() + first * width, start.begin() + (first + rows) * width);
      std::vector<uint64_t> path;
      for (int i = 0; i < rows; i++) path.push_back((2ull << i) - 1);
      Step s = small_step(p, v.view, piece);
      if (tree) s.tree = path.data();
      if (adapted) adapters.choose(std::vector<int32_t>((size_t)rows, 0)), s.adapters = &adapters;
      p.plan.run(s);
      all.insert(all.end(), piece.begin(), piece.end());
    }
    return all;
  };
  const auto whole = feed(count, false, false);
  for (float x : whole) expect(std::isfinite(x), "the state behind the experts is not finite");
  for (int step : {1, 2, 5})
    expect(equal(feed(step, false, false), whole), "rows of experts in pieces of " + std::to_string(step) + " differ");
  expect(equal(feed(9, true, false), whole), "a tree of one path differs from a line");
  expect(equal(feed(9, false, true), whole), "adapters of zeros differ from none");
}

// A later layer with more slots grows, and so moves, the partials that all layers share: within one run, and at its
// start.
void test_growing_partials() {
  SmallPlan p(Layout::int8, 2, 3, false);
  const auto start = floats(SmallPlan::hidden);
  const auto feed = [&] {
    SmallView v({300, 2000, 6000});
    std::vector<float> rows = start;
    Step s = small_step(p, v.view, rows);
    p.plan.run(s);
    return rows;
  };
  const auto growing = feed();
  expect(equal(feed(), growing), "a step whose later layers grow the shared partials differs from the next one");
}

void test_late_arrival() {
  SmallPlan p(Layout::int4, 4, 2, true);
  SmallView v({0, 0});
  Arrivals arrivals(2);
  arrivals.set(0);
  auto rows = floats(3 * SmallPlan::hidden), again = rows;
  Step s = small_step(p, v.view, rows);
  s.arrivals = &arrivals, s.patience = 0.01;
  bool late = false;
  try {
    p.plan.run(s);
  } catch (const std::runtime_error&) { late = true; }
  expect(late && v.view.tokens(0, 0) == 0 && v.view.tokens(1, 0) == 0,
         "a layer that never arrives is not an error, or leaves slots behind");
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    arrivals.set(1);
  });
  Step next = small_step(p, v.view, again);
  next.arrivals = &arrivals, next.patience = 60;
  p.plan.run(next);
  other.join();
  expect(v.view.tokens(1, 0) == 3, "a layer that arrived late did not run");
}
