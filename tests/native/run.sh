#!/bin/sh
# Builds the C++ test binary with the address and undefined-behaviour sanitizers and runs it. Usage: tests/native/run.sh [build directory]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/sanitize}
cmake -S "$root" -B "$build" -DTHRIFTY_SANITIZE=ON -DCMAKE_BUILD_TYPE=None
cmake --build "$build" --parallel 2
UBSAN_OPTIONS=print_stacktrace=1 "$build/native_test"
