#!/bin/sh
# No fused multiply-add in double: the gates and norms do without, because not every machine has one, and a compiler
# that forms one changes a result too rarely for hashes to notice (once in about 2^25 elements). x86-64, objdump.
#
#   tests/bits/contract.sh [COMPILER...]
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 any "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '#define GDN_IMPLEMENTATION\n#include "gdn_varlen.h"\n' >implementation.c
[ $# -gt 0 ] || set -- gcc clang clang-19

failed=0
for compiler in "$@"; do
    for flags in -O2 "-O3 -march=x86-64-v3" "-O3 -march=x86-64-v3 -DGDN_NO_SIMD" "-O3 -march=x86-64-v3 -ffp-contract=fast"; do
        # shellcheck disable=SC2086 # split into words on purpose
        $compiler -std=c11 $flags -I "$root" -c implementation.c -o implementation.o
        # The float64 computation and what it is inlined into may.
        objdump -d --no-show-raw-insn implementation.o | awk '
            /^[0-9a-f]+ </ { name = $2 }
            name ~ /gdni_reference|gdn_run_work_items|gdn_segment/ { next }
            /vfn?m(add|sub|addsub|subadd)[0-9]+[ps]d/ { count[name]++ }
            END { for (name in count) print "    " name, count[name] }' >found
        if [ -s found ]; then
            echo "FAILED: $compiler $flags:"
            cat found
            failed=1
        else
            echo "ok: $compiler $flags"
        fi
    done
done
exit $failed
