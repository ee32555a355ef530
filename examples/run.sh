#!/bin/sh
# Builds the demonstration with a bare "cc -O2" and runs it; needs a C compiler and nothing else.
#
#   examples/run.sh         demo_varlen
#   examples/run.sh all     and every other example
#
# The compiler is the first that is there of $CC, cc, gcc, clang, tcc (embed.cpp: $CXX, c++, g++, clang++).
# Exit status: 0, that of the demonstration, or 1 where another example or a build failed.
set -u

usage() { sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"; }
case $#,${1-} in
0, | 1,all) ;;
1,-h | 1,--help)
    usage
    exit
    ;;
*)
    usage >&2
    exit 2
    ;;
esac

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd) || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# first_of COMMAND...: the first that exists; a command may have arguments, as in CC="gcc -m32".
first_of() {
    for command in "$@"; do
        command -v "${command%% *}" >/dev/null 2>&1 || continue
        echo "$command"
        return
    done
}

# build NAME SOURCE COMPILER...: with the mathematics library, or without it where there is none.
build() {
    name=$1 source=$2
    shift 2
    "$@" -I "$root" "$root/examples/$source" -o "$work/$name" -lm 2>"$work/errors" ||
        "$@" -I "$root" "$root/examples/$source" -o "$work/$name" 2>/dev/null || {
        cat "$work/errors" >&2
        echo "examples/run.sh: $1 could not build $source" >&2
        return 1
    }
}

# example NAME SOURCE COMPILER...: builds and runs one of the others.
example() {
    printf '\n== %s\n' "$2"
    build "$@" && "$work/$1" || status=1
}

cc=$(first_of "${CC:-cc}" cc gcc clang tcc)
if [ -z "$cc" ]; then
    echo "examples/run.sh: no C compiler found; on Debian: apt-get install gcc libc6-dev" >&2
    exit 1
fi
echo "compiler: $cc"

# shellcheck disable=SC2086 # $cc and $cxx are split into words on purpose
{
    build demo_varlen demo_varlen.c $cc -O2 || exit 1
    "$work/demo_varlen"
    status=$?
    [ "${1-}" = all ] || exit $status

    for name in minimal fixed_length speculative serve_loop; do
        example $name $name.c $cc -O2
    done
    openmp=-fopenmp
    echo 'int main(void) { return 0; }' >"$work/openmp.c"
    $cc -fopenmp "$work/openmp.c" -o "$work/openmp" 2>/dev/null || openmp=
    example threads threads.c $cc -O2 -pthread $openmp

    printf '\n== gdn_oracle.c\n'
    build gdn_oracle gdn_oracle.c $cc -O2 && "$work/gdn_oracle" run "$root/tests/golden/long_300" "$work/out" &&
        "$work/gdn_oracle" compare "$root/tests/golden/long_300/o.npy" "$work/out/o.npy" --rtol 1e-6 --atol 1e-6 ||
        status=1

    cxx=$(first_of "${CXX:-c++}" c++ g++ clang++)
    if [ -n "$cxx" ]; then
        example embed embed.cpp $cxx -O2 -pthread
    else
        printf '\n== embed.cpp\nleft out: no C++ compiler found; on Debian: apt-get install g++\n'
    fi
}
exit $status
