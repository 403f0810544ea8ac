#define THRIFTY_ISA isa_avx2
#include "isa/codes_avx2.hpp"

#include "isa/kernels.hpp"

const thrifty::Kernels* thrifty::kernels_avx2() { return &isa_avx2::table; }
