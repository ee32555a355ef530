#!/bin/sh
# The header in several translation units, several times in one, from C and from C++: everything links and runs.
#
#   tests/compile/units.sh CC CXX
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 2 2 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root/tests/compile"
c="$1 -x c -std=c11 -Werror -DGDN_NO_SIMD" # one instance of the kernel is enough here, and quick to compile
cxx="$2 -x c++ -std=c++11 -Werror -DGDN_NO_SIMD"

# run WHAT: the program that was linked last.
run() {
    "$work/program" || {
        echo "FAILED: $1" >&2
        exit 1
    }
    echo "ok: $1"
}

# shellcheck disable=SC2086 # the commands are split into words on purpose
{
    $c -I "$root" -c implementation.c -o "$work/implementation_c.o"
    $c -I "$root" -c user.c -o "$work/user_c.o"
    $cxx -I "$root" -c implementation.c -o "$work/implementation_cxx.o"
    $cxx -I "$root" -c user.c -o "$work/user_cxx.o"
    for implementation in c cxx; do
        for user in c cxx; do
            $2 "$work/user_$user.o" "$work/implementation_$implementation.o" -o "$work/program" -lm
            run "user in $user, implementation in $implementation"
        done
    done

    $c -I "$root" -DGDN_IMPLEMENTATION -DGDN_NO_MALLOC user.c -o "$work/program" -lm
    run "GDN_IMPLEMENTATION on the command line, the header twice; GDN_NO_MALLOC"

    for without in "-DGDN_NO_AVX512" "-DGDN_NO_AVX2 -DGDN_NO_AVX512 -DGDN_NO_NEON"; do
        $1 -x c -std=c11 -Werror -I "$root" -DGDN_IMPLEMENTATION $without user.c -o "$work/program" -lm
        run "$without"
    done

    mkdir "$work/src" "$work/vendor"
    cp user.c "$work/src"
    cp "$root/gdn_varlen.h" "$work/vendor"
    cp "$root/gdn_varlen.h" "$work/src/delta.hpp"
    cd "$work/src"
    $cxx -DGDN_IMPLEMENTATION -DHEADER='"delta.hpp"' -DGDN_HEADER_NAME='"delta.hpp"' user.c -o "$work/program" -lm
    run "GDN_HEADER_NAME, the header twice in C++"

    private() { $c -DGDN_IMPLEMENTATION '-DGDN_API=static inline' -DHEADER='"../vendor/gdn_varlen.h"' "$@"; }
    private -c user.c -o "$work/user_private.o"
    cd /
    private -Dmain=another_main -c "$work/src/user.c" -o "$work/another_private.o"
    $1 "$work/user_private.o" "$work/another_private.o" "$work/implementation_c.o" -o "$work/program" -lm
    run "GDN_API='static inline' twice beside the public functions; a relative path to the header"
}
