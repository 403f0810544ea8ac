// Rows of a buffer, normed if a norm is given, as the activations that packed linears read.
#pragma once
#include "isa/isa.hpp"
#include "plan/plan.hpp"

namespace thrifty {

constexpr int kPrivateRows = 2;  // so few rows are prepared by every worker for itself: cheaper than a barrier

inline size_t padded_floats(int columns) { return align64((size_t)columns * sizeof(float)); }

// More than kPrivateRows rows are shared out to panels of the plan, and a barrier follows.
struct Panels {
  const float* norm;
  float epsilon;
  bool codes = false, pairs = false, plain = false, tokens = false;  // which of the four kinds the linears need
  float threshold = 0;                                               // of outliers, the same for all that read tokens

  size_t scratch(int columns) const;
  Linear by_tokens(int columns) const { return reader_of(Reads::tokens, columns, threshold); }
  struct Ready {
    const uint8_t *codes, *pairs, *plain, *tokens;
    const uint8_t* of(const Linear& w) const {
      switch (w.reads()) {
        case Reads::plain:
          return plain;
        case Reads::pairs:
          return pairs;
        case Reads::tokens:
          return tokens;
        default:
          return codes;
      }
    }
  };
  template <class F> Ready prepare(Plan& plan, Worker& w, int rows, int columns, F&& row_at) const;
};

template <class F> Panels::Ready Panels::prepare(Plan& plan, Worker& w, int rows, int columns, F&& row_at) const {
  const Linear by_codes = reader_of(Reads::codes, columns), by_pairs = reader_of(Reads::pairs, columns),
               by_floats = reader_of(Reads::plain, columns), by_rows = by_tokens(columns);
  float* normed = (float*)w.scratch;
  uint8_t* own = w.scratch + padded_floats(columns);
  const bool apart = rows <= kPrivateRows;
  const size_t code_bytes = codes ? align64(panel_bytes(by_codes, 1)) : 0,
               pair_bytes = pairs ? align64(panel_bytes(by_pairs, 1)) : 0,
               token_bytes = tokens ? align64(panel_bytes(by_rows, 1)) : 0;
  uint8_t* code_panel = apart ? own : plan.panel(Reads::codes);
  uint8_t* pair_panel = apart ? own + code_bytes : plan.panel(Reads::pairs);
  uint8_t* token_panel = apart ? own + code_bytes + pair_bytes : plan.panel(Reads::tokens);
  uint8_t* plain_panel = apart ? own + code_bytes + pair_bytes + token_bytes : plan.panel(Reads::plain);
  for (int i = apart ? 0 : w.begin(rows), end = apart ? rows : w.end(rows); i < end; i++) {
    const float* x = row_at(i);
    if (norm) kernels().rms_norm(x, norm, epsilon, columns, normed), x = normed;
    if (codes) place_row(by_codes, x, i, code_panel);
    if (pairs) place_row(by_pairs, x, i, pair_panel);
    if (tokens) place_row(by_rows, x, i, token_panel);
    if (plain) place_row(by_floats, x, i, plain_panel);
  }
  if (!apart) w.barrier();
  return {code_panel, pair_panel, plain_panel, token_panel};
}

}  // namespace thrifty
