#!/bin/sh
# Static analysis of the header, the examples and the tests.
#
#   tests/quality/static.sh [TOOL...]      of: fanalyzer cppcheck clang-tidy scan-build stack (default: all)
#
# Needs gcc, cppcheck, clang-tidy and scan-build (Debian: clang-tools). What is not to be reported is listed with its
# reason in static-ignored.txt; everything else is a failure. JOBS files are analysed at a time (default: all processors).
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 any "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
jobs=${JOBS:-$(nproc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"

tools=${*:-fanalyzer cppcheck clang-tidy scan-build stack}
# Not those that need ggml or MPI.
sources=$(find tests/support tests/fuzz tests/bench tests/accuracy examples tests/test_*.c -name '*.c' ! -path '*ggml*' \
    ! -path '*/mpi/*' | sort)
include="-I. -Iexamples -Itests/support"
# The kernel is analysed once, in plain C; the other instances are the same text.
defines="-DGDN_NO_SIMD -DGDN_GOLDEN_DIR=\"\""
export include defines

need() {
    command -v "$1" >/dev/null || {
        echo "tests/quality/static.sh: $1 is missing" >&2
        exit 2
    }
}

# each COMMAND: with $1 as each of the sources.
each() { echo "$sources" | xargs -P "$jobs" -n 1 sh -c "$1 2>&1 || :" sh; }

fanalyzer() {
    need gcc
    each 'gcc -std=c11 -O1 -fanalyzer $include $defines -c "$1" -o /dev/null' | grep -E '(warning|error):' || :
}

# The options in plain words: what the compiler would know, as cppcheck has no headers of the system.
cppcheck_() {
    need cppcheck
    # shellcheck disable=SC2086 # split into words on purpose
    cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr $include $defines -DFLT_RADIX=2 \
        -DFLT_MANT_DIG=24 -DDBL_MANT_DIG=53 -DFLT_EVAL_METHOD=0 -j "$jobs" \
        --template='{file}:{line}: warning: {message} [{id}]' $sources 2>&1 | grep 'warning:' || :
}

clang_tidy() {
    need clang-tidy
    each 'clang-tidy --quiet --header-filter="gdn_|case_io|support/" --checks="-*,bugprone-*,cert-*,clang-analyzer-*,concurrency-*,misc-*,performance-*,portability-*" "$1" -- -std=c11 $include $defines' |
        grep -E '(warning|error):' || :
}

scan_build() {
    need scan-build
    each 'scan-build -o "'"$work"'/scan" --use-cc=gcc gcc -std=c11 $include $defines -c "$1" -o /dev/null' |
        grep -E '(warning|error):' || :
}

# Frames of a size that is known when it is compiled: neither alloca() nor an array of variable length.
stack() {
    need gcc
    gcc -std=c11 -O2 -fstack-usage -I. -c tests/support/gdn_impl.c -o "$work/stack.o"
    awk '$NF == "dynamic" { sub(":", ": warning: frame of unknown size: "); print $0, "[stack]" }' "$work"/*.su
}

failed=0
for tool in $tools; do
    case $tool in
    cppcheck) run=cppcheck_ ;;
    clang-tidy) run=clang_tidy ;;
    scan-build) run=scan_build ;;
    fanalyzer | stack) run=$tool ;;
    *)
        wrong_usage "no tool '$tool'"
        ;;
    esac
    start=$(date +%s)
    "$run" | sed "s|^$root/||; s|^\./||; s|/\./|/|" | sort -u | sed "s|^|$tool: |" >"$work/found"
    grep -v '^#' tests/quality/static-ignored.txt | grep . >"$work/ignored"
    grep -Ev -f "$work/ignored" "$work/found" >"$work/left" || :
    echo "$tool: $(wc -l <"$work/left") reports, $(($(wc -l <"$work/found") - $(wc -l <"$work/left"))) ignored," \
        "$(($(date +%s) - start)) s"
    cat "$work/left"
    if [ -s "$work/left" ]; then failed=1; fi
done
exit $failed
