// What the machine can do: the two numbers that the roofline needs.
#pragma once

namespace thrifty {

double read_bandwidth(int megabytes, int repeats);  // GB/s, best of `repeats` passes of all workers over the memory
double gemm_rate(int repeats);  // 1e9 multiplications and additions a second, int4 weights x int8 rows, best

}  // namespace thrifty
