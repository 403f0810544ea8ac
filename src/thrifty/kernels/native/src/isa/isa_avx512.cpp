#define THRIFTY_ISA isa_avx512
#include "isa/codes_avx512.hpp"

#include "isa/kernels.hpp"

const thrifty::Kernels* thrifty::kernels_avx512() { return &isa_avx512::table; }
