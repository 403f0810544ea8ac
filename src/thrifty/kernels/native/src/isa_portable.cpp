#define THRIFTY_ISA isa_portable
#include "codes_portable.hpp"

#include "kernels.hpp"

const thrifty::Kernels* thrifty::kernels_portable() { return &isa_portable::table; }
