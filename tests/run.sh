#!/bin/sh
# Builds everything and runs all tests; on a fresh Debian machine too.
#
#   tests/run.sh [ARGUMENT OF CTEST...]        such as -R golden, or -LE compile
#
# What is missing is installed with apt-get, given root or a sudo that asks for no password; otherwise the command to
# type is printed and the exit status is 2. Tests that need more than that (Python, MPI, an instruction set) are skipped
# where it is missing, which is said before and after. BUILD_DIR says where to build (default: build/), JOBS how much at
# a time (default: all processors).
set -eu
. "$(dirname -- "$0")/usage.sh"
usage_of 0 options "$@"

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

# skips WHAT TESTS HOW: says what will be skipped, and how to have it.
missing=
skips() {
    [ -n "$missing" ] || echo "Missing here:"
    missing="$missing $1"
    printf '    %-14s skips %s; %s\n' "$1" "$2" "$3"
}

# The Python that has most of what the tests need.
python=
for candidate in "$(command -v python3 || :)" /usr/bin/python3; do
    if [ -x "$candidate" ]; then
        modules=$("$candidate" -c 'import importlib.util as u
print(*[m for m in ("numpy", "mpmath", "pytest", "torch", "transformers", "hatchling") if u.find_spec(m)])')
        if [ -z "$python" ] || [ ${#modules} -gt ${#has_modules} ]; then python=$candidate has_modules=$modules; fi
    fi
done
if [ -z "$python" ]; then
    skips python3 "oracle_mpmath, rounding_orders, python" "apt-get install python3 python3-numpy python3-mpmath python3-pytest"
else
    lacks() { case " $has_modules " in *" $1 "*) false ;; esac; }
    if lacks numpy; then skips numpy "oracle_mpmath, rounding_orders, python" "apt-get install python3-numpy"; fi
    if lacks mpmath; then skips mpmath "oracle_mpmath" "apt-get install python3-mpmath"; fi
    if lacks pytest; then skips pytest "python" "apt-get install python3-pytest"; fi
    if lacks torch; then skips torch "in python: torch.ops, tensors" "pip install torch"; fi
    if lacks transformers; then skips transformers "in python: Qwen3-Next" "pip install transformers"; fi
    if lacks hatchling; then skips hatchling "in python: pip install" "apt-get install python3-hatchling"; fi
fi
have mpicc || skips MPI "example_mpi_*" "apt-get install libopenmpi-dev openmpi-bin"
skips ggml "example_ggml_custom_op" "tests/bench/ggml.sh fetches it"
skips llama.cpp "example_ggml_backend" "examples/ggml_backend/test.sh fetches it"
if [ -r /proc/cpuinfo ] && [ "$(uname -m)" = x86_64 ]; then
    grep -qw avx2 /proc/cpuinfo || skips AVX2 "computed_avx2, same_bits_avx2, seed_avx2" "this CPU lacks it"
    grep -qw avx512vl /proc/cpuinfo || skips AVX-512 "computed_avx512, same_bits_avx512, seed_avx512" "this CPU lacks it"
fi

if [ ! -f "$build/CMakeCache.txt" ] && ! have make; then
    CMAKE_GENERATOR=Ninja
    export CMAKE_GENERATOR
fi
jobs=${JOBS:-$(nproc 2>/dev/null || echo 1)}
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release ${python:+"-DPython3_EXECUTABLE=$python"}
cmake --build "$build" --parallel "$jobs"
cd "$build"
status=0
ctest --output-on-failure --parallel "$jobs" "$@" || status=$?

# What each test said of what it left out.
awk '
    / Testing: / { name = $3 }
    /^(SKIPPED|skipped)(:| \[)/ { if (!found++) print "\nSkipped:"; printf "    %-24s %s\n", name, $0 }
    END { if (!found) print "\nNothing was skipped." }' Testing/Temporary/LastTest.log
exit $status
