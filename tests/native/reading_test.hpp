// Plain arrays in and out: slabs read as fp32, probabilities over plain keys, lengths of slabs. Part of
// native_test.cpp.

// Every token of a slab read alone is what it is in one piece; values of bf16 are what is stored.
void test_read_slab(Format format, int dim) {
  const int capacity = 128, tokens = 101;
  Exact memory = slab(format, capacity, dim);
  const size_t d = (size_t)dim;
  const auto keys = std::make_unique<float[]>(tokens * d),
             values = std::make_unique<float[]>(tokens * d);  // exactly sized
  read_slab(memory.data.get(), format, capacity, dim, 0, tokens, keys.get(), values.get());
  bool same = true;
  for (int i = 0; i < tokens; i++) {
    const auto key = std::make_unique<float[]>(d), value = std::make_unique<float[]>(d);
    read_slab(memory.data.get(), format, capacity, dim, i, 1, key.get(), value.get());
    same &= !std::memcmp(key.get(), keys.get() + (size_t)i * d, d * sizeof(float)) &&
            !std::memcmp(value.get(), values.get() + (size_t)i * d, d * sizeof(float));
  }
  expect(same, "a token read alone differs");
  if (format == Format::bf16) {
    const auto* stored = (const uint16_t*)(memory.data.get() + slab_layout(format, capacity, d).values);
    for (size_t i = 0; i < tokens * d; i++) {
      const uint32_t bits = (uint32_t)stored[i] << 16;
      same &= !std::memcmp(values.get() + i, &bits, 4);
    }
    expect(same, "values differ from what is stored");
  }
  expect_refused("tokens behind a slab",
                 [&] { read_slab(memory.data.get(), format, capacity, dim, 100, 29, keys.get(), values.get()); });
  expect_refused("a slab that is too short", [&] {
    check_slab_bytes("slab", (int64_t)slab_layout(format, capacity, d).bytes - 1, (int)format, capacity, dim);
  });
  check_slab_bytes("slab", (int64_t)slab_layout(format, capacity, d).bytes, (int)format, capacity, dim);
}

// Against a slow loop; rows that see few slots and all of them.
void test_attention_map(int dim, bool biased, float softcap) {
  const int rows = 13, slots = 131;
  const size_t d = (size_t)dim;
  const auto q = floats(rows * d), keys = floats(slots * d), bias = floats(slots);
  std::vector<int64_t> sees(rows);
  for (int i = 0; i < rows; i++) sees[(size_t)i] = i == 0 ? slots : 1 + 10 * i;
  std::vector<float> out((size_t)rows * (size_t)slots, 7.0f);
  const AttentionMap call{q.data(), keys.data(), sees.data(), biased ? bias.data() : nullptr, rows, slots,
                          dim,      0.5f,        softcap};
  attention_map(call, out.data());
  double worst = 0;
  for (int i = 0; i < rows; i++) {
    std::vector<double> weights((size_t)slots, 0.0);
    double sum = 0;
    for (size_t s = 0; s < (size_t)sees[(size_t)i]; s++) {
      double logit = 0;
      for (size_t c = 0; c < d; c++) logit += (double)q[(size_t)i * d + c] * (double)keys[s * d + c];
      logit *= 0.5;
      if (softcap > 0) logit = softcap * std::tanh(logit / softcap);
      sum += weights[s] = std::exp(logit + (biased ? (double)bias[s] : 0.0));
    }
    for (size_t s = 0; s < (size_t)slots; s++)
      worst = std::max(worst, std::abs(weights[s] / sum - (double)out[(size_t)i * (size_t)slots + s]));
  }
  expect(worst < 1e-5, "probabilities differ from the formula");
  sees[3] = slots + 1;
  expect_refused("a row that sees more slots than there are", [&] { attention_map(call, out.data()); });
  sees[3] = 0;
  expect_refused("a row that sees nothing", [&] { attention_map(call, out.data()); });
}
