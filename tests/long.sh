#!/usr/bin/env bash
# What .ci/run leaves out: everything that takes longer than a change should wait for. Three hours on two processors, two
# of them for the fuzzers.
#
#   tests/long.sh [SECTION...]       the sections by name, or some of them (tests/long.sh --list); default: all
#
# Runs every section whatever the others say, and ends with a summary; exit status 1 if one failed, was missing a tool,
# or does not exist. FUZZ_SECONDS (default 3600): time for each fuzz target. Logs go to $BUILD_DIR (default build-long/).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${BUILD_DIR:-$PWD/build-long}
jobs=$(nproc)
mkdir -p "$out"

# build NAME CMAKE_ARGUMENT...: the tests, without the examples.
build() {
    local dir=$out/$1
    shift
    cmake -S . -B "$dir" -DGDN_EXAMPLES=OFF "$@" && cmake --build "$dir" --parallel "$jobs"
}

# tests NAME CTEST_ARGUMENT...: of that build.
tests() {
    local dir=$out/$1
    shift
    (cd "$dir" && ctest --output-on-failure --no-tests=error --parallel "$jobs" "$@")
}

gcc=(-DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++)
clang=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)

section_fuzz() { tests/fuzz/run.sh "${FUZZ_SECONDS:-3600}" "$jobs"; }

section_address() {
    build address "${clang[@]}" -DGDN_SANITIZE=address,undefined -DCMAKE_C_FLAGS_RELEASE=-O1 && tests address -L run
}
section_memory() {
    build memory "${clang[@]}" -DGDN_OWN_CMOCKA=ON -DGDN_SANITIZE=memory -DCMAKE_C_FLAGS_RELEASE=-O1 &&
        tests memory -L run
}
section_threads() {
    build thread "${clang[@]}" -DGDN_SANITIZE=thread -DCMAKE_C_FLAGS_RELEASE=-O1 && tests thread -L run
}
# The tests of time and of stack are not for an emulated processor, and valgrind's has no AVX-512.
section_valgrind() {
    build valgrind "${gcc[@]}" -DCMAKE_C_FLAGS_RELEASE="-O1 -g" || return
    printf '%s\n' golden same_bits computed refused seed | GDN_TEST_REQUIRE_ISA=plain xargs -P "$jobs" -I NAME sh -c '
        echo test_NAME
        valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite,indirect,possible \
            "$0/valgrind/tests/test_NAME" >"$0/valgrind-NAME.log" 2>&1 || { tail -n 40 "$0/valgrind-NAME.log"; exit 1; }
    ' "$out"
}

section_static() { tests/static.sh; }
section_coverage() { tests/coverage.sh; }
section_mutants() { tests/mutants.py; }
section_exhaustive() { build exhaustive "${gcc[@]}" && tests exhaustive -C long -L long; }
# A hundred thousand calls, a thousand for each process.
section_random() {
    build random "${gcc[@]}" || return
    seq 0 1000 99000 | xargs -P "$jobs" -I FIRST "$out/random/tests/test_random" 1000 FIRST
}
section_targets() { tests/bits/targets.sh --require-all; }
# Scripts that start programs themselves would start them without the emulator.
section_emulated() {
    local tool
    for tool in qemu-aarch64 aarch64-linux-gnu-gcc aarch64-linux-gnu-g++; do
        command -v "$tool" >/dev/null || { echo "$tool is missing" && return 1; }
    done
    build aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DGDN_OWN_CMOCKA=ON \
        -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" &&
        GDN_TEST_REQUIRE_ISA=neon tests aarch64 -L run -E 'oracle_|rounding_orders|bench|resources'
}

# PyTorch and transformers from PyPI: 5 GB.
section_torch() {
    local venv=$out/torch
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet numpy pytest hatchling torch transformers || return
    GDN_VARLEN_CACHE=$venv OMP_NUM_THREADS=1 "$venv/bin/python" examples/python/tests/run.py &&
        GDN_VARLEN_CACHE=$venv OMP_NUM_THREADS=$jobs "$venv/bin/python" examples/python/qwen3_next.py
}
section_ggml() {
    tests/bench/ggml.sh && cmake --build build-ggml --target ggml_custom_op --parallel "$jobs" &&
        build-ggml/examples/ggml_custom_op
}
section_contract() { tests/bits/contract.sh; }
section_orders() {
    build orders "${gcc[@]}" && python3 tests/rounding_orders.py "$out/orders/gdn_oracle" tests/golden --draws 1000
}

all=(fuzz address memory threads valgrind static coverage mutants exhaustive random targets contract emulated orders torch ggml)
[[ ${1-} != --list ]] || { printf '%s\n' "${all[@]}" && exit; }
(($# == 0)) || all=("$@")

summary=()
failed=0
for name in "${all[@]}"; do
    start=$SECONDS
    printf '\n==== %s\n' "$name"
    if "section_$name" 2>&1 | tee "$out/$name.log"; then result=passed; else result=FAILED failed=1; fi
    summary+=("$(printf '%-12s %-7s %6d s  %s' "$name" "$result" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log")")")
done
printf '\n==== summary, %d s\n' $SECONDS
printf '%s\n' "${summary[@]}"
exit $failed
