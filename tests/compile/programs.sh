#!/bin/sh
# The programs of the documentation compile under the full warning set, run, and exit with 0: the one in the comment
# at the head of gdn_varlen.h, and every ```c and ```cpp block of README.md that has a main().
#
#   tests/compile/programs.sh CC CXX
set -eu

cc=$1 cxx=$2
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
warnings=$(tr '\n' ' ' <"$root/tests/compile/warnings.txt")
cd "$work"

# The indented block of the comment that has a main(), up to the brace in its first column.
awk '
    /^ \*     / || /^ \*$/ {
        block = block substr($0, 8) "\n"
        if (/int main\(/) found = 1
        if (found && $0 == " *     }") { printf "%s", block; exit }
        next
    }
    { block = "" }' "$root/gdn_varlen.h" >header.c

[ -f "$root/README.md" ] || { echo "FAILED: there is no README.md" >&2; exit 1; }
awk '
    /^```/ && inside { close(file); inside = 0; next }
    /^```(c|cpp)$/ { file = "readme_" ++count "." substr($0, 4); inside = 1; next }
    inside { print >file }' "$root/README.md"

programs=0
failed=0
for source in header.c readme_*; do
    grep -qs 'int main(' "$source" || continue
    case $source in
    *.c) compile="$cc -std=c11 -Wstrict-prototypes" ;;
    *.cpp) compile="$cxx -std=c++17 -pthread" ;;
    esac
    # shellcheck disable=SC2086 # split into words on purpose
    if $compile -O2 $warnings -Werror -I "$root" "$source" -o program -lm && ./program; then
        echo "ok: $source"
    else
        echo "FAILED: $source:" >&2
        cat "$source" >&2
        failed=1
    fi
    programs=$((programs + 1))
done
grep -q 'int main(' header.c || { echo "FAILED: no program in the comment of gdn_varlen.h" >&2; exit 1; }
[ $programs -gt 1 ] || { echo "FAILED: no program in README.md" >&2; exit 1; }
exit $failed
