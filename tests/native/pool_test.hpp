// The pool of threads: tasks, crews, and what a busy pool does. Part of native_test.cpp, inside its namespace.
#pragma once

void test_pool() {
  for (int threads = 1; threads <= std::min(2, Pool::available()); threads++) {
    Pool pool(threads);
    std::atomic<int> sum{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; i++)
      callers.emplace_back([&] {
        for (int j = 0; j < 50; j++)
          pool.run(100, [&](Worker& w) {
            w.scratch[99] = 1;
            w.barrier();
            for (int k = w.begin(6); k < w.end(6); k++) sum += w.scratch[99];
          });
      });
    for (auto& c : callers) c.join();
    expect(sum.load() == 150 * 6, "the pool lost work");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the workers park, and wake again
    pool.run(0, [&](Worker& w) { sum += w.end(6) - w.begin(6); });
    expect(sum.load() == 151 * 6, "a parked worker did not wake");
  }
}

// Who waits for much of its runs goes on with fewer workers, tries all again after a pause, and waits longer each time.
void test_crew() {
  using std::chrono::milliseconds;
  Clock::time_point now{};
  Crew crew(3);
  const auto run = [&](int spent, int waited) {
    crew.begin(now);
    now += milliseconds(spent);
    crew.end(now, milliseconds(spent), milliseconds(waited));
  };
  for (int i = 0; i < 20; i++) run(10, 0);
  run(10, 6);
  for (int i = 0; i < 20; i++) run(10, 0);
  expect(crew.size() == 3, "one late worker is no busy machine");
  run(10, 9), run(10, 9);
  expect(crew.size() == 2, "a worker that is late again and again is left out");
  run(10, 9), run(10, 9);
  expect(crew.size() == 1, "down to one");
  const auto pause = [&] {
    const auto before = now;
    while (crew.size() == 1) run(10, 0);
    const auto waited = now - before;
    for (int i = 0; i < 2; i++) run(10, 9);
    for (int i = 0; i < 2; i++) run(10, 9);
    return waited;
  };
  const auto first = pause(), second = pause();
  expect(second > first, "the pause grows while the machine stays busy");
  while (crew.size() < 3) run(10, 0);
  for (int i = 0; i < 2000; i++) run(10, 0);
  run(10, 9), run(10, 9);
  const auto before = now;
  while (crew.size() < 3) run(10, 0);
  expect(now - before < milliseconds(250), "after quiet the first pause is short again");
}

void test_busy_pool() {
  if (Pool::available() < 2) return;
  Pool pool(2);
  std::atomic<int> sum{0};
  const auto run = [&](bool late) {
    pool.run(100, [&](Worker& w) {
      if (late && w.id == 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      w.barrier();
      for (int i = w.begin(10); i < w.end(10); i++) sum++;
    });
  };
  for (int i = 0; i < 20 && pool.taking_part() == 2; i++) run(true);
  expect(pool.taking_part() == 1, "a worker that is always late still takes part");
  sum = 0;
  run(true);
  expect(sum.load() == 10, "one worker does the work of both");
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  sum = 0;
  run(false);
  expect(sum.load() == 10 && pool.taking_part() == 2, "all are tried again");
}
