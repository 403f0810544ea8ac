// Which instruction set the kernels use.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "types.hpp"

namespace thrifty {

const Kernels& kernels();
void force_isa(const std::string& name);  // "avx512", "avx2", "portable", or "auto"; throws std::invalid_argument
std::vector<std::pair<std::string, bool>> cpu_features();
bool isa_available(const std::string& name);

}  // namespace thrifty
