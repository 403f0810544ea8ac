// The Python module. Each part binds its own file of the native code.
#include <nanobind/nanobind.h>

#include "bind.hpp"

NB_MODULE(_native, m) {
  thrifty::bind_kernels(m);
  thrifty::bind_view(m);
  thrifty::bind_plan(m);
}
