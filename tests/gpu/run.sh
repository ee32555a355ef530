#!/bin/sh
# Runs the Triton kernels of SGLang and FLA on this machine's GPU and prints how far they, and this library's float32,
# are from its float64. Needs python3 with torch and triton, and a C compiler.
#
#   tests/gpu/run.sh [ARGUMENT OF compare.py...]                     fetches the kernels from PyPI
#   tests/gpu/run.sh --kernels DIR [ARGUMENT OF compare.py...]       DIR holds wheels, or what was extracted from them
#
# Without a GPU, in Triton's interpreter: TRITON_INTERPRET=1 tests/gpu/run.sh --small
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 options "$@"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..
build=${BUILD_DIR:-$root/build}/gpu
python=${PYTHON:-python3}
kernels=$build/wheels

mkdir -p "$build"
"${CC:-cc}" -O2 -I"$root" "$root/examples/gdn_oracle.c" -o "$build/gdn_oracle" -lm
"$python" -c 'import torch, triton, numpy, einops' || {
    echo "tests/gpu/run.sh: $python needs torch, triton, numpy and einops" >&2
    exit 2
}
if [ "${1-}" = --kernels ]; then
    kernels=$2
    shift 2
else
    # Of SGLang the last version with [K,V] states, and a later one with [V,K].
    for package in fla-core==0.6.0 sglang==0.5.6 sglang==0.5.23; do
        "$python" -m pip download -q --no-deps --python-version 3.12 --only-binary=:all: -d "$kernels" "$package"
    done
fi
exec "$python" "$here/compare.py" --oracle "$build/gdn_oracle" --kernels "$kernels" "$@"
