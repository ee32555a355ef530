#!/bin/sh
# The header alone under the full warning set, as errors: with and without the implementation, over language
# standards, optimisation levels and the configuration macros.
#
#   tests/compile/matrix.sh [COMPILER...]
#
# Without arguments: every compiler of the list below that is there; gcc and clang have to be.
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 any "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
warnings=$(tr '\n' ' ' <"$root/tests/compile/warnings.txt")

if [ $# = 0 ]; then
    for compiler in gcc clang clang-19 g++ clang++ clang++-19; do
        if command -v $compiler >/dev/null 2>&1; then
            set -- "$@" $compiler
        else
            case $compiler in gcc | clang)
                echo "matrix.sh: $compiler is missing; on Debian: apt-get install $compiler" >&2
                exit 2
                ;;
            esac
            echo "not found: $compiler"
        fi
    done
fi

printf 'int main(void) { return 0; }\n' >"$work/empty.c"
printf '#include "gdn_varlen.h"\n' >"$work/interface.c"
printf '#define GDN_IMPLEMENTATION\n#include "gdn_varlen.h"\n' >"$work/implementation.c"

# try SOURCE FLAG...: compiles with $compiler, in $language.
# shellcheck disable=SC2086 # flags are split into words on purpose
try() {
    source=$1
    shift
    "$compiler" -x $language $warnings -Werror "$@" -I "$root" -c "$work/$source.c" -o "$work/out.o" || {
        echo "FAILED: $compiler $* ($source)" >&2
        failed=1
    }
    count=$((count + 1))
}

failed=0
for compiler in "$@"; do
    count=0
    native=-march=native
    # clang 19 finds fault with the features of some CPUs, in any program.
    if ! "$compiler" -x c -Werror $native -fsyntax-only "$work/empty.c" 2>/dev/null; then
        native="$native -Wno-invalid-feature-combination"
        echo "$compiler: an empty program gives warnings under -march=native, so with $native"
    fi
    case $compiler in
    *++*)
        language=c++
        for standard in c++11 c++14 c++17 c++20; do try interface -std=$standard; done
        try implementation -std=c++11 -O2
        try implementation -std=c++14 -O0 -DGDN_NO_SIMD '-DGDN_API=static inline'
        try implementation -std=c++17 -fsyntax-only -DGDN_NO_MALLOC
        try implementation -std=c++20 -fsyntax-only $native
        ;;
    *)
        language=c
        for standard in c11 c17 gnu11; do try interface -std=$standard -Wstrict-prototypes; done
        try implementation -std=c11 -Wstrict-prototypes -O2
        try implementation -std=c11 -Wstrict-prototypes -O0
        try implementation -std=c17 -Wstrict-prototypes -O2 -DGDN_NO_SIMD
        try implementation -std=c17 -Wstrict-prototypes -O0 -DGDN_NO_SIMD '-DGDN_API=static inline'
        try implementation -std=gnu11 -Wstrict-prototypes -O2 $native -DGDN_NO_MALLOC
        ;;
    esac
    echo "$compiler: $count compilations"
done
exit $failed
