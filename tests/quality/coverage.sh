#!/bin/sh
# How much of the header the tests run: lines and branches. Needs gcc (gcov) and python3.
#
#   tests/quality/coverage.sh
#
# The kernel's text is compiled once for each instruction set; coverage.py puts the instances together. The lines that
# only an instance has which this CPU cannot run are left out: the vectors of AVX-512 in [TARGETS], measured on a machine
# that has it. Those of NEON are not compiled here.
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 0 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build-coverage}

# A copy of the header without optimisation and inlining, so that branches are counted where they are written.
mkdir -p "$build/header"
lacks=
grep -qw avx512bw /proc/cpuinfo 2>/dev/null || lacks=avx512
awk -v lacks="$lacks" '
    /^#pragma GCC optimize/ { print "#pragma GCC optimize(\"O0\", \"fp-contract=off\")"; next }
    /^#define GDNI_INLINE / { print "#define GDNI_INLINE static"; next }
    /^#define GDNI_TARGET / && $3 == lacks { print $0, "/* COVERAGE_OFF */"; marked = 1; next }
    marked && /^#include GDN_HEADER_NAME/ { print $0, "/* COVERAGE_ON */"; marked = 0; next }
    { print }' "$root/gdn_varlen.h" >"$build/header/new"
cmp -s "$build/header/new" "$build/header/gdn_varlen.h" || cp "$build/header/new" "$build/header/gdn_varlen.h"
cmake -S "$root" -B "$build" -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++ -DGDN_EXAMPLES=OFF \
    -DCMAKE_C_FLAGS="--coverage -fprofile-update=atomic -iquote $build/header" -DCMAKE_C_FLAGS_RELEASE=-O0 >/dev/null
cmake --build "$build" --parallel "$(nproc)" >"$build/build.log" 2>&1 || {
    grep error "$build/build.log"
    exit 1
}
find "$build" -name '*.gcda' -delete
# The tests of time and of accuracy run what the others run.
(cd "$build" && ctest -L run -E 'bench|accuracy|gates|oracle_cli|guarded' --parallel "$(nproc)" --output-on-failure \
    >ctest.log) || {
    tail -n 40 "$build/ctest.log"
    exit 1
}
"$root/tests/quality/coverage.py" "$build/header/gdn_varlen.h" "$root/tests/quality/coverage-ignored.txt" \
    "$(find "$build/CMakeFiles/gdn_implementation.dir" -name 'gdn_impl*.gcda')"
