#!/bin/sh
# The programs of the documentation compile under the full warning set, run, and exit with 0: the one in the comment at
# the head of gdn_varlen.h, and every ```c and ```cpp block with a main() of every README.md of the tree. The first one
# of README.md is compiled as its reader does; the others without the implementation, which is compiled once. Every
# ```python block is valid Python (where there is a python3).
#
#   tests/compile/programs.sh CC CXX
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 2 2 "$@"

cc=$1 cxx=$2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
warnings=$(tr '\n' ' ' <"$root/tests/compile/warnings.txt")
cd "$work"
cp "$root/gdn_varlen.h" .

# The indented block of the comment that has a main(), up to the brace in its first column.
mkdir -p blocks
awk '
    /^ \*     / || /^ \*$/ {
        block = block substr($0, 8) "\n"
        if (/int main\(/) found = 1
        if (found && $0 == " *     }") { printf "%s", block; exit }
        next
    }
    { block = "" }' gdn_varlen.h >blocks/gdn_varlen.h:comment.c

# Every fenced block goes to blocks/README:LINE.LANGUAGE, with the folders of README in its name.
readmes=$(cd "$root" && find . -name README.md ! -path './build*' ! -path '*/.*/*' ! -path '*/site-packages/*' |
    sed 's/^\.\///' | sort)
for readme in $readmes; do
    awk -v name="blocks/$(echo "$readme" | tr / _)" '
        /^```/ && inside { close(file); inside = 0; next }
        /^```(c|cpp|python)$/ {
            file = name ":" sprintf("%04d", FNR) "." (/python/ ? "py" : substr($0, 4))
            inside = 1
            next
        }
        inside { print >file }' "$root/$readme"
done

# build COMPILER_AND_FLAGS SOURCE [OBJECT]
build() {
    # shellcheck disable=SC2086 # split into words on purpose
    $1 -O2 $warnings -Werror -I . "$2" ${3-} -o program -lm
}

printf '#define GDN_IMPLEMENTATION\n#include "gdn_varlen.h"\n' >implementation.c
# shellcheck disable=SC2086
$cc -std=c11 -O2 -I . -c implementation.c -o implementation.o

readme_programs=0 failed=0
for source in blocks/*.c blocks/*.cpp; do
    grep -qs 'int main(' "$source" || continue
    case $source in
    *.c) compile="$cc -std=c11 -Wstrict-prototypes" ;;
    *.cpp) compile="$cxx -std=c++17 -pthread" ;;
    esac
    object=implementation.o
    case $source in blocks/README.md:*) readme_programs=$((readme_programs + 1)) ;; esac
    if [ $readme_programs = 1 ] && [ ! -e as_the_reader ]; then
        object= # README.md's first program
        touch as_the_reader
    else
        sed 's/^#define GDN_IMPLEMENTATION.*//' "$source" >block && mv block "$source"
    fi
    if build "$compile" "$source" "$object" && ./program >output; then
        echo "ok: ${source#blocks/}"
    else
        echo "FAILED: ${source#blocks/}:" >&2
        cat "$source" >&2
        failed=1
    fi
done
if command -v python3 >/dev/null && python3 -c '' 2>/dev/null; then
    for source in blocks/*.py; do
        [ -e "$source" ] || continue
        if python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read())' "$source"; then
            echo "ok: ${source#blocks/}: Python"
        else
            echo "FAILED: ${source#blocks/}" >&2
            failed=1
        fi
    done
fi
grep -q 'int main(' blocks/gdn_varlen.h:comment.c ||
    { echo "FAILED: no program in the comment of gdn_varlen.h" >&2 && exit 1; }
[ $readme_programs -gt 1 ] || { echo "FAILED: README.md has not its two programs" >&2; exit 1; }
exit $failed
