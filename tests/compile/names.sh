#!/bin/sh
# What the header leaves behind: macros, symbols, writable data, calls out of it.
#
#   tests/compile/names.sh COMPILER...      C compilers, and C++ compilers by a name with ++
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 1 any "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '#include "gdn_varlen.h"\n' >interface.c
printf '#define GDN_IMPLEMENTATION\n#include "gdn_varlen.h"\n' >implementation.c

failed=0
# refuse WHAT FILE: every line of FILE is a failure.
refuse() {
    [ -s "$2" ] || return 0
    echo "FAILED: $compiler: $1:" >&2
    sed 's/^/    /' "$2" >&2
    failed=1
}

# macros FILE: those that the header defines, by the line markers of the preprocessor; into `used` all, into `left`
# those still there at the end.
macros() {
    $compile -E -dD -I "$root" "$1" | awk '
        /^# [0-9]+ "/ { ours = $3 ~ /gdn_varlen\.h"$/ }
        /^#define / && ours { sub(/\(.*/, "", $2); used[$2]; left[$2] }
        /^#undef / { delete left[$2] }
        END { for (name in used) print name >"used"; for (name in left) print name >"left" }'
    grep -qx GDN_VERSION left
}

# writable OBJECT: the kind and name of data that are not constant.
writable() { nm -C "$1" | awk '$(NF - 1) ~ /^[bBdDCsSgG]$/ { print $(NF - 1), $NF }'; }

# The functions that the interface declares.
sed -n '/end of the interface/q; s/^GDN_API .*[ *]\(gdn_[a-z0-9_]*\)(.*/\1/p' "$root/gdn_varlen.h" | sort >declared
[ -s declared ]

# Embedders have macros of one letter and other short ones; the interface must not use such names.
{
    printf '#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n'
    for word in A B C D E F G H I J K L M N O P Q R S T U V W X Y Z HV BV BK min max abs likely small near far unix linux; do
        printf '#undef %s\n#define %s @\n' $word $word
    done
    cat interface.c
} >hostile.c

# The implementation comes after other people's headers, in whose programs these are macros: one letter, and words of
# windows.h, rpcndr.h, Qt, Arduino, R, the BSDs, macOS and complex.h.
{
    for file in float limits math stdbool stddef stdint stdlib string; do printf '#include <%s.h>\n' $file; done
    printf '#if defined(__x86_64__) || defined(__i386__)\n#include <immintrin.h>\n#endif\n'
    printf '#if defined(__aarch64__)\n#include <arm_neon.h>\n#endif\n'
    for word in A B C D E F G H I J K L M N O P Q R S T U V W Y Z HV BV BK MIN MAX IN OUT OPTIONAL CONST VOID PI B0 B1 A0 \
        small near far hyper interface slots signals emit foreach forever min max likely unix linux nil Nil YES NO HIGH \
        LOW INPUT OUTPUT DEFAULT EXTERNAL boolean byte verify require major minor nitems howmany roundup ERROR; do
        printf '#undef %s\n#define %s @\n' $word $word
    done
    cat implementation.c
} >hostile_implementation.c

for compiler in "$@"; do
    case $compiler in
    *++*) compile="$compiler -x c++ -std=c++11" levels=-O0 ;;
    *) compile="$compiler -x c -std=c11" levels="-O0 -O2" ;;
    esac

    $compile -fsyntax-only -I "$root" hostile.c || { echo "FAILED: $compiler: names of the interface" >&2; failed=1; }
    $compile -fsyntax-only -I "$root" hostile_implementation.c ||
        { echo "FAILED: $compiler: names of the implementation" >&2; failed=1; }

    macros interface.c
    grep -v '^GDN_' used >bad || :
    refuse "macros of the interface without the prefix GDN_" bad
    macros implementation.c
    grep -vi '^gdni\{0,1\}_' used >bad || :
    refuse "macros of the implementation without the prefix of the project, for a while" bad
    grep -v '^GDNI\{0,1\}_\|^gdni_' left >bad || :
    refuse "macros of the implementation that stay, without the prefix GDN_, GDNI_ or gdni_" bad

    for level in $levels; do
        # Without position independence, tables of pointers are where constants are.
        $compile "$level" -fno-pie -fno-pic -I "$root" -c implementation.c -o implementation.o
        nm -g --defined-only implementation.o | awk '{ print $NF }' | sort >defined
        grep -vxF -f declared defined >bad || :
        refuse "symbols that the interface does not declare ($level)" bad
        grep -vxF -f defined declared >bad || :
        refuse "functions of the interface that are not defined ($level)" bad
        writable implementation.o | grep -vx 'b gdni_cpu' >bad || : # what CPUID said
        refuse "writable data ($level)" bad
        nm -u implementation.o | awk '{ print $NF }' |
            grep -vxE 'mem(cpy|set|move)|malloc|free|exp|log1p|sqrt' >bad || :
        refuse "calls of functions outside the list ($level)" bad

        $compile "$level" -fno-pie -fno-pic -DGDN_NO_MALLOC -DGDN_NO_SIMD -I "$root" -c implementation.c \
            -o implementation.o
        nm -u implementation.o | awk '{ print $NF }' | grep -xE 'malloc|free' >bad || :
        refuse "the heap under GDN_NO_MALLOC ($level)" bad
        writable implementation.o >bad
        refuse "writable data under GDN_NO_SIMD ($level)" bad
    done
    echo "$compiler: $(wc -l <left) macros, $(wc -l <defined) functions"
done
exit $failed
