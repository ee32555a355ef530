#!/usr/bin/env bash
# The same bits on every target: bits.c for compilers, languages, levels, architectures and systems, one row each.
# sweep.sh has more compilers and tunings.
#
#   tests/bits/targets.sh [--quick] [--require-all] [PATTERN]
#
#   --quick        the rows that are built in one way only, about three minutes
#   --require-all  a row whose tools are missing is a failure (one that this CPU cannot run is not)
#   PATTERN        only rows whose name matches this extended regular expression
#
# Debian: gcc g++ clang clang-19 qemu-user musl-tools lld wasi-libc libclang-rt-14-dev-wasm32 nodejs wine64 libwine-dev
# gcc-mingw-w64-x86-64 python3-venv, and gcc-TRIPLET with its libc for i686-linux-gnu, aarch64-linux-gnu,
# riscv64-linux-gnu, s390x-linux-gnu, powerpc64le-linux-gnu, arm-linux-gnueabihf. zig comes from PyPI.
set -euo pipefail

usage() { sed -n '/^#   /s/^#   //p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
quick='' require_all='' pattern=.
for argument; do
    case $argument in
    --quick) quick=1 ;;
    --require-all) require_all=1 ;;
    -h | --help) usage && exit ;;
    -*) usage >&2 && exit 2 ;;
    *) pattern=$argument ;;
    esac
done

work=$(mktemp -d)
trap 'if [ -d "$work/wine" ]; then wineserver64 -k || :; fi; rm -rf "$work"' EXIT
export WINEPREFIX=$work/wine WINEDEBUG=-all PATH=$PATH:/usr/lib/wine

rows=0 failures=0 missing=0 not_run=0

# report NAME RESULT [LOG]
report() {
    rows=$((rows + 1))
    printf '%-62s %s\n' "$1" "$2"
    case $2 in
    MISSING*) missing=$((missing + 1)) ;;
    "not run"*) not_run=$((not_run + 1)) ;;
    FAILED*)
        failures=$((failures + 1))
        tail -n 8 "$3" | sed 's/^/    /'
        ;;
    esac
}

# wanted NAME: whether the row is, and its tools are there, the words of $tools: programs or files.
wanted() {
    local tool
    [[ $1 =~ $pattern ]] || return 1
    for tool in $tools; do
        [ -e "$tool" ] || command -v "$tool" >/dev/null && continue
        report "$1" "MISSING: $tool"
        return 1
    done
}

# executable COMPILE: whether this CPU runs what the words compile; $lacking is what it lacks.
executable() {
    case " $1 " in
    *" -march=x86-64-v4 "*) lacking=avx512vl ;;
    *) return 0 ;;
    esac
    grep -qw "$lacking" /proc/cpuinfo
}

includes=(-I "$root" -I "$root/tests/support")

# same COMPILE [RUN [ARGUMENT...]]: builds with the words of COMPILE, runs behind those of RUN; the row is named after both.
# $also: what it needs besides.
same() {
    local compile=$1 run=${2:-} name tools program=$work/program.exe log=$work/log language=c
    name=$compile${run:+, ${run%% *}}
    tools="${compile%% *} ${run%% *} ${also:-}"
    shift $(($# < 2 ? $# : 2))
    [[ ${compile%% *} == *++* ]] && language=c++
    wanted "$name" || return 0
    rm -f "$program"
    # shellcheck disable=SC2086 # split into words on purpose
    if ! timeout 600 $compile -x $language "${includes[@]}" "$root/tests/bits/bits.c" -o "$program" -lm >"$log" 2>&1; then
        report "$name" "FAILED: does not compile" "$log"
    elif ! executable "$compile"; then
        report "$name" "not run: this CPU lacks $lacking"
    elif ! timeout 1200 $run "$program" "$@" >"$log" 2>&1; then
        report "$name" "FAILED" "$log"
    else
        report "$name" "$(tail -n 1 "$log")"
    fi
}

# msvc COMPILER ARGUMENT...: a row for the target of Visual Studio, with wine's headers and its ucrtbase.dll. $INCLUDE
# and $LIB are where clang and its linker look, for libcmt, oldnames and, because of -lm, for m.
msvc() {
    local compile="$1 --target=x86_64-pc-windows-msvc -fuse-ld=lld ${*:2}"
    local wine=/usr/include/wine/wine libraries=/usr/lib/x86_64-linux-gnu/wine/x86_64-windows
    local also="lld-link $wine/msvcrt/stdio.h $libraries/libucrtbase.a"
    local -x INCLUDE="$wine/msvcrt;$wine/windows" LIB=$work/msvc
    if [ ! -e "$LIB" ] && command -v "$1" >/dev/null && [ -e "$libraries/libucrtbase.a" ]; then
        mkdir "$LIB"
        ln -s "$libraries/libucrtbase.a" "$LIB/oldnames.lib"
        ln -s "$libraries/libntdll.a" "$LIB/m.lib" # __chkstk
        "$1" --target=x86_64-pc-windows-msvc -x c -c "$root/tests/bits/msvc.c" -o "$LIB/libcmt.lib"
    fi
    same "$compile" wine64 --require "$x86"
}

# with_zig ARGUMENTS [RUN]: a row for zig, which the first one installs.
with_zig() {
    local compile="zig cc -std=c11 -mcpu=baseline $1" run=${2:-} venv=$work/zig
    if [[ "$compile${run:+, $run}" =~ $pattern ]] && [ ! -d "$venv" ] && python3 -m venv "$venv" &&
        "$venv/bin/pip" install --quiet ziglang; then
        printf '#!/bin/sh\nexec "%s/bin/python" -m ziglang "$@"\n' "$venv" >"$venv/bin/zig"
        chmod +x "$venv/bin/zig"
        export PATH=$PATH:$venv/bin ZIG_GLOBAL_CACHE_DIR=$venv/cache ZIG_LOCAL_CACHE_DIR=$venv/cache
    fi
    same "$compile" "$run" --require "$x86"
}

# selects ISA CPU: what is taken on a CPU as qemu describes it, which has no AVX-512.
selects() {
    local name="qemu-x86_64 -cpu $2" tools='gcc qemu-x86_64' log=$work/log program=$work/selected result
    wanted "$name" || return 0
    : >"$log"
    if [ ! -e "$program" ]; then
        printf '%s\n' '#include <gdn_varlen.h>' '#include <stdio.h>' \
            'int main(void) { return puts(gdn_isa_name(gdn_isa_selected())) < 0; }' |
            gcc -O1 -static -DGDN_IMPLEMENTATION -I "$root" -x c - -o "$program" -lm >"$log" 2>&1 || :
    fi
    result=$(qemu-x86_64 -cpu "$2" "$program" 2>>"$log") || :
    if [ "$result" = "$1" ]; then
        report "$name" "ok: $1"
    else
        report "$name" "FAILED: takes $result, not $1" "$log"
    fi
}

# unmasked COMPILE: no arithmetic on floats under a mask in x86-64 code, on any CPU. The kernel has none; compilers have
# made masks of conditions on scalars, and left every other lane out.
unmasked() {
    local name="$1, code" tools="${1%% *} objdump" log=$work/log
    wanted "$name" || return 0
    # shellcheck disable=SC2086
    if ! timeout 600 $1 -DGDN_IMPLEMENTATION -x c "$root/gdn_varlen.h" -c -o "$work/object" >"$log" 2>&1; then
        report "$name" "FAILED: does not compile" "$log"
    elif objdump -d --no-show-raw-insn "$work/object" |
        grep -E '\<v(add|sub|mul|div|fn?m[a-z]+[0-9]+)[ps][sdh]\>.*\{%k' >"$log"; then
        report "$name" "FAILED: $(wc -l <"$log") instructions under a mask" "$log"
    else
        report "$name" "ok: no arithmetic under a mask"
    fi
}

# refused COMPILE MESSAGE: does not compile, and says why.
refused() {
    local tools=${1%% *} log=$work/log
    wanted "$1" || return 0
    # shellcheck disable=SC2086
    if $1 -x c "${includes[@]}" -fsyntax-only "$root/tests/bits/bits.c" >"$log" 2>&1; then
        report "$1" "FAILED: compiles" "$log"
    elif ! grep -q "error.*gdn_varlen.h: $2" "$log"; then
        report "$1" "FAILED: does not say why" "$log"
    else
        report "$1" "refused: $2"
    fi
}

x86=
grep -qw avx2 /proc/cpuinfo && x86=avx2
grep -qw avx512vl /proc/cpuinfo && x86=avx2,avx512

# This machine.
threads='-DBITS_THREADS -pthread'
if [ "$quick" ]; then
    same "gcc -std=c11 -O0"
    same "gcc -std=gnu11 -O3 -march=native $threads"
    same "gcc -std=c11 -O2 -flto"
    same "g++ -std=c++20 -O1"
    same "clang -std=c11 -O0 -DGDN_NO_SIMD"
    same "clang++ -std=c++11 -O2"
    same "clang-19 -std=c11 -O3 -march=native $threads"
else
    for compiler in gcc clang clang-19; do
        for level in -O0 -O1 -O2 -O3; do same "$compiler -std=c11 $level"; done
        same "$compiler -std=gnu11 -O2 -march=native"
        same "$compiler -std=c11 -O2 -DGDN_NO_SIMD"
        same "$compiler -std=c11 -O3 -march=native -DGDN_NO_SIMD"
        same "$compiler -std=c11 -O2 $threads"
    done
    same "gcc -std=c11 -O2 -flto"
    same "clang -std=c11 -O2 -flto -fuse-ld=lld"
    for compiler in g++ clang++ clang++-19; do
        same "$compiler -std=c++11 -O2"
        same "$compiler -std=c++14 -O1"
        same "$compiler -std=c++17 -O0"
        same "$compiler -std=c++20 -O3 -march=native"
    done
fi
# AVX-512VL for the whole file and a tuning for vectors of 16 or 32 bytes: gcc 12 to 16 compute a choice between vectors
# under a scalar condition wrongly there, in every other element, where a loop has one.
avx512vl="gcc -std=c11 -O2 -march=x86-64-v4 -mtune"
same "$avx512vl=znver3"
unmasked "$avx512vl=znver3"
if [ ! "$quick" ]; then
    same "$avx512vl=haswell"
    unmasked "$avx512vl=haswell"
    same "gcc -std=c11 -O3 -march=x86-64-v4 -mtune=znver3 -DGDN_NO_SIMD"
    same "g++ -std=c++11 -O3 -march=x86-64-v4 -mtune=znver3"
    for compiler in clang clang-19; do same "$compiler -std=c11 -O3 -march=x86-64-v4 -mtune=znver3"; done
fi
same "clang -std=c11 -O3 -fassociative-math -fno-signed-zeros -fno-trapping-math" # no macro betrays it: it has no effect
same "musl-gcc -std=c11 -O2 -static $threads"

# Other architectures.
i686="i686-linux-gnu-gcc -std=c11 -O2 -static -msse2"
same "$i686 -mfpmath=sse" "" --require "$x86"
same "aarch64-linux-gnu-gcc -std=c11 -O2 -static" qemu-aarch64 --require neon
same "riscv64-linux-gnu-gcc -std=c11 -O2 -static" qemu-riscv64
same "s390x-linux-gnu-gcc -std=c11 -O2 -static" qemu-s390x
same "powerpc64le-linux-gnu-gcc -std=c11 -O2 -static" qemu-ppc64le
same "arm-linux-gnueabihf-gcc -std=c11 -O2 -static" qemu-arm
if [ ! "$quick" ]; then
    same "$i686 -mfpmath=sse -O0" "" --require "$x86"
    same "aarch64-linux-gnu-gcc -std=c11 -O0 -static" qemu-aarch64 --require neon
    same "aarch64-linux-gnu-gcc -std=c11 -O3 -static -DGDN_NO_SIMD" qemu-aarch64
    for compiler in clang clang-19; do
        same "$compiler --target=aarch64-linux-gnu -std=c11 -O2 -static" qemu-aarch64 --require neon
        # Not clang for s390x: it multiplies by MDEBR, which qemu 7.2 computes wrongly (-0.4352 * -0.02661 = 2e-7).
    done
    same "s390x-linux-gnu-gcc -std=c11 -O3 -march=z14 -static" qemu-s390x
    same "powerpc64le-linux-gnu-gcc -std=c11 -O3 -mcpu=power9 -static" qemu-ppc64le
    same "arm-linux-gnueabihf-gcc -std=c11 -O3 -mfpu=neon-vfpv4 -static" qemu-arm
fi

# Other systems.
wasm="clang --target=wasm32-wasi -std=c11"
node="node --no-warnings --experimental-wasi-unstable-preview1 $root/tests/bits/wasi.mjs"
same "x86_64-w64-mingw32-gcc -std=c11 -O2 -static" wine64 --require "$x86"
msvc clang -std=c11 -O2
same "$wasm -O2" "$node"
if [ ! "$quick" ]; then
    same "x86_64-w64-mingw32-gcc -std=c11 -O0 -static" wine64 --require "$x86"
    same "x86_64-w64-mingw32-gcc -std=c11 -O3 -march=native -static $threads" wine64 --require "$x86"
    gcc_libraries=$(dirname "$(x86_64-w64-mingw32-gcc -print-libgcc-file-name 2>/dev/null)")
    same "clang --target=x86_64-w64-mingw32 -std=c11 -O2 -static -L $gcc_libraries" wine64 --require "$x86"
    same "x86_64-w64-mingw32-gcc -std=c11 -O2 -DGDN_NO_SIMD -static" wine64 --require plain
    msvc clang -std=c11 -O0 -march=x86-64-v4
    msvc clang-19 -std=c11 -O3
    msvc clang++ -std=c++20 -O1
    same "$wasm -O0" "$node"
    same "$wasm -O3 -msimd128" "$node"
fi

# A compiler whose run-time library knows no CPUs.
if [ ! "$quick" ]; then
    with_zig -O2
    with_zig -O0 # with its undefined behaviour sanitizer
    with_zig "-O2 -target x86_64-windows-gnu" wine64
fi

# Which instance other CPUs and systems get.
selects avx2 Haswell
selects plain IvyBridge # AVX without AVX2
selects plain Haswell,-fma
selects plain Haswell,-f16c
selects plain Haswell,-avx2
selects plain Haswell,-xsave # the system does not save the registers

# What cannot give them is refused.
refused "$i686 -mfpmath=387" "x87 arithmetic"
refused "i686-linux-gnu-gcc -std=c11" "x87 arithmetic"
refused "clang --target=i686-linux-gnu -isystem /usr/i686-linux-gnu/include -std=c11 -mno-sse" "x87 arithmetic"
for compiler in gcc clang clang-19; do
    refused "$compiler -std=c11 -ffast-math" "-ffast-math"
    refused "$compiler -std=c11 -Ofast" "-ffast-math"
    refused "$compiler -std=c11 -ffinite-math-only" "-ffinite-math-only"
done
refused "gcc -std=c11 -funsafe-math-optimizations" "-ffast-math"

printf '%d rows, %d failed, %d missing, %d not run\n' $rows $failures $missing $not_run
((rows > 0 && failures == 0 && (missing == 0 || !${require_all:-0})))
