// The parts of the Python module.
#pragma once
#include <nanobind/nanobind.h>

namespace thrifty {

void bind_kernels(nanobind::module_& m);
void bind_view(nanobind::module_& m);
void bind_plan(nanobind::module_& m);

}  // namespace thrifty
