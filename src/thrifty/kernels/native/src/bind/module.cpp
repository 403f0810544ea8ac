// The Python module. Each part binds its own file of the native code.
#include <nanobind/nanobind.h>

#include "bind/bind.hpp"

NB_MODULE(_native, m) {
  nanobind::set_leak_warnings(false);  // an engine that lives as long as its process is no leak
  thrifty::bind_kernels(m);
  thrifty::bind_view(m);
  thrifty::bind_plan(m);
}
