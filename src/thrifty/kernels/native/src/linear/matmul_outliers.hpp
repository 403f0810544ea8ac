// Features of a row of activations that int8 would spoil, multiplied apart in fp32 (LLM.int8(), arXiv 2208.07339, §3.2,
// equation 8): the weights of their columns are the stored codes times their scales. Included once per instruction set.
#pragma once

namespace thrifty::THRIFTY_ISA {

// The signed codes of one column for 16 rows, `block` being those of its 32 columns, 8 bits each.
THRIFTY_INLINE V column_codes(const uint8_t* block, int column) {
  const Words words = load_words(block + 64 * (column / 4));
  const V middle = set1(128.0f);
  switch (column % 4) {
    case 0:
      return sub(words_as_floats(field<8>(words, 0)), middle);
    case 1:
      return sub(words_as_floats(field<8>(words, 8)), middle);
    case 2:
      return sub(words_as_floats(field<8>(words, 16)), middle);
    default:
      return sub(words_as_floats(field<8>(words, 24)), middle);
  }
}

// acc[i] = fma(code, scale * x, acc[i]) for the outliers of row i, columns ascending: a row's own, whoever its
// neighbours are. x: the first of M rows inside a panel.
template <Layout L, int M>
THRIFTY_INLINE void add_outliers(const Linear& w, int tile, const ActivationBlock* x, V* acc) {
  static_assert(codes_of(L, false).low == 8 && codes_of(L, false).offset == 128);
  const int groups = (w.in + w.group - 1) / w.group;
  const uint8_t* codes = w.codes + (size_t)tile * tile_step<L, false>(w);
  const uint16_t* scales = w.scales + (size_t)tile * (size_t)groups * kLanes;
  for (int i = 0; i < M; i++) {
    const auto* list = (const ActivationOutliers*)(x + (size_t)w.blocks() * kPanel + i);
    for (int n = 0;; n++) {
      const auto& outlier = list[(size_t)(n / kOutliers) * kPanel].of[n % kOutliers];
      if (outlier.column < 0) break;
      const V scale = load_half(scales + (size_t)(outlier.column / w.group) * kLanes);
      const V code =
          column_codes(codes + (size_t)(outlier.column / kBlockColumns) * 512, outlier.column % kBlockColumns);
      acc[i] = fma(code, mul(scale, set1(outlier.value)), acc[i]);
    }
  }
}

}  // namespace thrifty::THRIFTY_ISA
