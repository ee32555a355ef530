#!/bin/sh
# Builds everything and runs all tests; on a fresh Debian machine too.
#
#   tests/run.sh [ARGUMENT OF CTEST...]        such as -R golden, or -LE compile
#
# What is missing is installed with apt-get, given root or a sudo that asks for no password; otherwise the command to
# type is printed and the exit status is 2. BUILD_DIR says where to build (default: build/).
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=${BUILD_DIR:-$root/build}

have() { command -v "$1" >/dev/null 2>&1; }

# compiles COMPILER LANGUAGE HEADER...: whether a file that includes the headers compiles.
compiles() {
    compiler=$1 language=$2
    shift 2
    have "$compiler" && printf '#include <%s>\n' "$@" | "$compiler" -x "$language" -fsyntax-only - 2>/dev/null
}

packages=
compiles "${CC:-cc}" c stdio.h || packages="$packages gcc libc6-dev"
compiles "${CXX:-c++}" c++ vector || packages="$packages g++"
have cmake || packages="$packages cmake"
have make || have ninja || packages="$packages make"
have pkg-config || packages="$packages pkg-config"
compiles "${CC:-cc}" c stdarg.h stddef.h setjmp.h stdint.h cmocka.h || packages="$packages libcmocka-dev"

if [ -n "$packages" ]; then
    install="apt-get install --yes --no-install-recommends$packages"
    if have apt-get && [ "$(id -u)" = 0 ]; then
        sudo=
    elif have apt-get && have sudo && sudo -n true 2>/dev/null; then
        sudo=sudo
    else
        echo "tests/run.sh: packages are missing; as root, run: apt-get update && $install" >&2
        exit 2
    fi
    # shellcheck disable=SC2086 # split into words on purpose
    {
        $sudo apt-get update
        $sudo env DEBIAN_FRONTEND=noninteractive $install
    }
fi

if [ ! -f "$build/CMakeCache.txt" ] && ! have make; then
    CMAKE_GENERATOR=Ninja
    export CMAKE_GENERATOR
fi
jobs=$(nproc 2>/dev/null || echo 1)
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release
cmake --build "$build" --parallel "$jobs"
cd "$build"
exec ctest --output-on-failure --parallel "$jobs" "$@"
