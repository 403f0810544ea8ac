// What a layout of weights tells drivers and kernels about itself.
#pragma once
#include "common.hpp"

namespace thrifty {

// The kernels that multiply a layout. groups: codes with one scale a row and group of columns. superblocks: codes with
// scales of two levels. table: codes into the linear's own table of fp32. pairs: two bf16 columns a word. plain: rows
// of numbers. planes: bit planes of bipolar integers. row_tables: codes into a table of each row. vectors: codes of
// vectors of neighbouring rows.
enum class Family : int { groups, superblocks, table, pairs, plain, planes, row_tables, vectors };

// A row of activations as the products of a layout read it: int8 blocks with a scale each, pairs of bf16, plain fp32,
// or int8 blocks with one scale for the whole row (and features beyond a threshold apart).
enum class Reads : int { codes, pairs, plain, tokens };
constexpr int kReads = 4;

// Whether a layout has minimums beside its scales.
enum class Minimums : int { never, may, always };

// Codes of 16 rows x 32 columns: a plane of the low bits, then one of the high bits. A plane is 64 bytes a bit; vector
// v = 0..7 of a block has column 4v + j in byte j of each lane.
//   8 bits: vector v at 64 v.  4 bits: v = 0..3 in the low nibbles at 64 v, vector 4 + v in the high ones.
//   2 bits: v at bits 2 (v % 4) of 64 (v / 4).  1 bit: v at bit v.  Codes of one bit in all stand for 0 and 2.
struct Codes {
  int low = 0, high = 0;  // bits of the planes; high 0: none
  bool table = false;     // codes are places in kTable
  int offset = 0;         // what a stored code is above the value that scales multiply
  bool sparse = false;    // two of four columns, behind the masks that say which (linear/layouts/sparse.hpp)
  THRIFTY_SHARED constexpr int bits() const { return low + high; }
  THRIFTY_SHARED constexpr int bytes() const {  // of a block
    return sparse ? 64 + 32 * (low + high) : 64 * (low + high);
  }
  THRIFTY_SHARED constexpr int step() const { return bits() == 1 ? 2 : 1; }  // of values from code to code
};

// The second level of a superblock: whole numbers for every `columns` columns that a superblock's fp16 scale (and
// minimum) multiply.
struct SubScales {
  int columns = 0;        // 32 or 16; 0: one level
  bool minimums = false;  // sub-minimums too
  int bytes = 0;          // of 16 rows, before the codes
  THRIFTY_SHARED constexpr int count() const { return columns ? kSuperblock * kBlockColumns / columns : 0; }
};

struct LayoutTraits {
  const char* name;  // as Python has it
  Family family;
  Codes codes{};
  Minimums minimums = Minimums::never;
  bool values_with_minimums = false;  // with minimums, codes are the values themselves: their offset is 0
  bool zeros = false;                 // may have zero points in place of minimums
  bool direct = false;                // unpacked in an instruction or two: cheaper each time than once for all rows
  bool wide_groups = false;           // groups of any multiple of 32 columns, up to whole rows
  SubScales subs{};
  int number = 0;           // bytes of a plain number
  int length = 0;           // rows of a vector
  int member = 0;           // of words that two linears share: the first (1) or the second (2)
  bool token_wise = false;  // activations have one scale a row, not one a block
  bool outliers = false;    // token-wise, and may leave features beyond a threshold apart

  THRIFTY_SHARED constexpr Reads reads() const {
    const bool floats =
        family == Family::plain || family == Family::table || family == Family::planes || family == Family::vectors;
    return family == Family::pairs ? Reads::pairs : floats ? Reads::plain : token_wise ? Reads::tokens : Reads::codes;
  }
  // Whether the layout has codes of integers and scales beside them.
  THRIFTY_SHARED constexpr bool coded() const { return reads() == Reads::codes || reads() == Reads::tokens; }
  THRIFTY_SHARED constexpr Codes codes_with(bool minimum) const {
    Codes own = codes;
    if (minimum && values_with_minimums) own.offset = 0;
    return own;
  }
  THRIFTY_SHARED constexpr int record_bytes() const { return subs.bytes + kSuperblock * codes.bytes(); }
};

}  // namespace thrifty
