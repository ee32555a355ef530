#!/bin/sh
# Under -ffast-math the implementation is refused with a reason; the interface still compiles. Under
# -fsingle-precision-constant, where the compiler knows that, it is refused too.
#
#   tests/compile/fast_math.sh CC
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 1 1 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile="$1 -x c -std=c11 -ffast-math -fsyntax-only -I $root"

# shellcheck disable=SC2086 # split into words on purpose
{
    echo '#include "gdn_varlen.h"' | $compile -
    if echo '#include "gdn_varlen.h"' | $compile -DGDN_IMPLEMENTATION - 2>"$work/errors"; then
        echo "FAILED: the implementation compiles" >&2
        exit 1
    fi
}
single="$1 -x c -std=c11 -fsingle-precision-constant -fsyntax-only -I $root"
# shellcheck disable=SC2086
if echo 'int x;' | $single -Werror - 2>/dev/null; then
    if echo '#include "gdn_varlen.h"' | $single -DGDN_IMPLEMENTATION - 2>"$work/single"; then
        echo "FAILED: the implementation compiles with -fsingle-precision-constant" >&2
        exit 1
    fi
    grep -q gdni_double_constants "$work/single"
fi
grep -q 'error.*gdn_varlen.h: -ffast-math' "$work/errors" || {
    echo "FAILED: the reason is not said:" >&2
    cat "$work/errors" >&2
    exit 1
}
