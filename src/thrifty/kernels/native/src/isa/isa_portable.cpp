#define THRIFTY_ISA isa_portable
#include "isa/codes_portable.hpp"

#include "isa/kernels.hpp"

const thrifty::Kernels* thrifty::kernels_portable() { return &isa_portable::table; }
