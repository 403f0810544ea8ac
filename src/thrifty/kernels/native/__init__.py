"""The C++ kernels (sources in `src/`, compiled by CMakeLists.txt into `_native`); reach them through `dispatch`."""
