#!/bin/sh
# Side by side with ggml's CPU operator: fetches ggml, builds it and gdn_bench, runs both in one process, prints a table.
#
#   tests/bench/ggml.sh [ARGUMENT OF gdn_bench...]        such as --threads 2, or --quick
#
# ggml's source is part of the source package of llama-cpp-python, which pip fetches from PyPI. GGML_DIR names another
# copy of it, LLAMA_CPP_PYTHON another version of the package, BUILD_DIR where to build (default: build-ggml/). The
# lines of gdn_bench stay there in ggml.txt.
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 options "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build-ggml}
version=${LLAMA_CPP_PYTHON:-0.3.36}
ggml=${GGML_DIR:-$build/llama_cpp_python-$version/vendor/llama.cpp/ggml}

fail() {
    echo "tests/bench/ggml.sh: $1" >&2
    exit 2
}

mkdir -p "$build"
if [ ! -d "$ggml" ]; then
    [ -z "${GGML_DIR:-}" ] || fail "there is no folder $GGML_DIR"
    echo "fetching llama-cpp-python $version, some minutes" >&2
    python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$build" "llama-cpp-python==$version" >&2 ||
        fail "pip cannot fetch llama-cpp-python $version"
    tar -xzf "$build/llama_cpp_python-$version.tar.gz" -C "$build" "llama_cpp_python-$version/vendor/llama.cpp/ggml"
fi
grep -q ggml_gated_delta_net "$ggml/include/ggml.h" || fail "the ggml in $ggml has no ggml_gated_delta_net"

cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGDN_BENCH_GGML_DIR="$ggml" >"$build/cmake.log" 2>&1 ||
    { cat "$build/cmake.log" >&2 && fail "cmake failed"; }
cmake --build "$build" --target gdn_bench --parallel "$(nproc 2>/dev/null || echo 1)" >"$build/build.log" 2>&1 ||
    { tail -n 50 "$build/build.log" >&2 && fail "the build failed: $build/build.log"; }

"$build/tests/bench/gdn_bench" --ggml "$@" >"$build/ggml.txt"
awk '
    BEGIN { printf "%-20s %-7s %7s %14s %14s %7s %9s\n", "case", "isa", "threads", "us", "us of ggml", "ratio", "nmse" }
    {
        for (i = 1; i <= NF; i++) {
            split($i, pair, "=")
            value[pair[1]] = pair[2]
        }
        printf "%-20s %-7s %7s %14s %14s %7s %9s\n", value["case"], value["isa"], value["threads"], value["best_us"],
            value["ggml_us"], value["ratio"], value["nmse"]
    }' "$build/ggml.txt"
