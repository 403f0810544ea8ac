// The table of one instruction set; the including file has defined THRIFTY_ISA and included its vector header.
#pragma once
#include "isa/elementwise.hpp"
#include "linear/matmul.hpp"
#include "attention/attention.hpp"
#include "attention/attention_map.hpp"
#include "attention/attention_witness.hpp"
#include "attention/compress.hpp"
#include "attention/page_selection.hpp"
#include "attention/read_page.hpp"

namespace thrifty::THRIFTY_ISA {

static uint64_t read(const uint8_t* data, size_t bytes) { return read_lines(data, bytes / 64); }

static constexpr Kernels table = {kName,
                                  quantise,
                                  quantise_token,
                                  to_pairs,
                                  rms_norm,
                                  tiles,
                                  gate,
                                  add_to,
                                  cap,
                                  rotate,
                                  arg_max,
                                  attend_scratch,
                                  attend_rows,
                                  attend_tile,
                                  attend_chunk,
                                  attend_merge,
                                  attend_accumulate,
                                  attend_witness,
                                  page_bounds,
                                  split_query,
                                  page_scores,
                                  map_queries,
                                  map_scores,
                                  map_softmax,
                                  read_page,
                                  compress_page,
                                  read};

}  // namespace thrifty::THRIFTY_ISA
