#!/usr/bin/env bash
# The same bits for every gcc and clang that Debian offers, level and tuning: bits.c, one build and run for each row.
#
#   tests/bits/sweep.sh [--quick | --full] [--rows=PATTERN] [--list] [COMPILER...]
#   tests/bits/sweep.sh --install [COMPILER...]
#
#   (neither)   13 tunings for each compiler, each at another level, so that every two of compiler, level and tuning
#               meet; 8 rows of other options, 3 of aarch64
#   --quick     six rows for gcc and clang as they are installed, 50 s
#   --full      every tuning at every level, and every option alone: 98 rows a compiler
#   --rows      only rows that match this extended regular expression
#   --list      the rows, and nothing else
#   --install   puts the compilers into Debian systems of their own under $BUILD_DIR (7 GB for all, 10 minutes; needs
#               root, mmdebstrap, bubblewrap)
#   COMPILER    gcc-11 to gcc-16, clang-13 to clang-23; default: all. One that is not there is MISSING, no failure
#
# BUILD_DIR (default build-sweep/): the systems, and the results by header and bits.c, which are not computed again unless
# they are failures. HEADER (default gdn_varlen.h of this tree): the file that is tested. JOBS (default: the processors).
set -euo pipefail

usage() { sed -n '/^#   /s/^#   //p' "${BASH_SOURCE[0]}"; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(realpath -m "${BUILD_DIR:-$root/build-sweep}")
suites=(bookworm trixie sid)
all=(gcc-{11..16} clang-{13..23})

mode=sample pattern='' compilers=()
for argument; do
    case $argument in
    --quick | --full | --install) mode=${argument#--} ;;
    --rows=*) pattern=${argument#*=} ;;
    --list) list=1 ;;
    -h | --help) usage && exit ;;
    -*) usage >&2 && exit 2 ;;
    *) compilers+=("$argument") ;;
    esac
done
if ((${#compilers[@]} == 0)); then
    compilers=("${all[@]}")
    [ "$mode" != quick ] || compilers=(gcc clang)
fi

# ---- compilers ----------------------------------------------------------------------------------------

# enter SUITE ACCESS: the words before a command that runs in that system go to $inside. It sees of this one $build/work
# alone. ACCESS: bind or ro-bind.
enter() {
    local system=$build/$1
    mkdir -p "$system$build/work" "$build/work"
    inside=(bwrap "--$2" "$system" / --dev /dev --proc /proc --tmpfs /run --perms 1777 --tmpfs /tmp
        --bind "$build/work" "$build/work" --ro-bind /etc/resolv.conf /etc/resolv.conf)
}

# find_program PROGRAM: $inside for the system that has it, which may be this one.
find_program() {
    local suite
    inside=()
    for suite in "${suites[@]}"; do
        if [ -x "$build/$suite/usr/bin/$1" ]; then
            enter "$suite" ro-bind
            return
        fi
    done
    command -v "$1" >/dev/null
}

# install COMPILER: from the first suite that has it, with what its rows need.
install() {
    local compiler=$1 number=${1##*-} suite package
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes install)
    for suite in "${suites[@]}"; do
        if [ ! -d "$build/$suite/usr" ]; then
            # A mirror may lag behind: sid expires within a week.
            mmdebstrap --quiet --variant=apt --aptopt='APT::Install-Recommends "0"' \
                --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$build/$suite" ${MIRROR:+"$MIRROR"}
            enter "$suite" bind
            "${inside[@]}" apt-get --quiet=2 update
        fi
        enter "$suite" bind
        "${inside[@]}" "${apt[@]}" "$compiler" libc6-dev libc6-dev-i386 libc6-dev-arm64-cross >/dev/null 2>&1 || continue
        for package in "$compiler-multilib" "$compiler-aarch64-linux-gnu" "libclang-rt-$number-dev"; do
            "${inside[@]}" "${apt[@]}" "$package" >/dev/null 2>&1 || : # not every compiler has all
        done
        echo "$compiler: $suite"
        return
    done
    echo "$compiler: in none of ${suites[*]}"
}

if [ "$mode" = install ]; then
    mkdir -p "$build"
    for compiler in "${compilers[@]}"; do install "$compiler"; done
    exit
fi

# ---- rows ---------------------------------------------------------------------------------------------

levels=(-O0 -O1 -O2 -O3 -Os)
wide="-march=x86-64-v4 -mtune=znver3"
# Not SSE4A, which AMD's processors alone have.
x86=("$wide" "-march=x86-64-v4 -mtune=haswell" -march=x86-64{,-v2,-v3,-v4} -march=haswell -march=skylake-avx512
    -march=sapphirerapids "-march=znver"{1..4}" -mno-sse4a")
arm=(-march=armv8-a -march=armv8.2-a -march=armv9-a)
options=("-O3 -ftree-vectorize -funroll-loops $wide" "-O2 -flto $wide" "-O2 -ffp-contract=fast -march=x86-64-v3"
    "-O2 -fno-strict-aliasing -fwrapv -fno-builtin" "-O2 -D_FORTIFY_SOURCE=3 -fstack-protector-strong"
    "-O2 -m32 -msse2 -mfpmath=sse" "-O2 -fsingle-precision-constant"
    "-O1 -fno-sanitize-recover=all -fsanitize=address,undefined")
alone=("-O3 -ftree-vectorize" "-O2 -funroll-loops" "-O2 -flto" "-O2 -fno-strict-aliasing" "-O2 -fwrapv" "-O2 -fno-builtin"
    "-O2 -D_FORTIFY_SOURCE=3" "-O2 -fstack-protector-strong"
    "-O1 -fno-sanitize-recover=all -fsanitize="{address,undefined})

all_rows() {
    local number=0 level tuning other i
    case $mode in
    quick) printf '%s\n' -O0 -Os "-O3 $wide" "-O2 -march=znver3 -mno-sse4a" "-O2 -funroll-loops $wide" "-O1 -march=haswell" ;;
    sample)
        for other in "${all[@]}"; do
            [ "$other" != "$1" ] || break
            number=$((number + 1))
        done
        for i in "${!x86[@]}"; do echo "${levels[(i + number) % 5]} ${x86[i]}"; done
        for i in "${!arm[@]}"; do echo "aarch64 ${levels[(i + number) % 5]} ${arm[i]}"; done
        printf '%s\n' "${options[@]}"
        ;;
    full)
        for level in "${levels[@]}"; do
            for tuning in "${x86[@]}"; do echo "$level $tuning"; done
            for tuning in "${arm[@]}"; do echo "aarch64 $level $tuning"; done
        done
        printf '%s\n' "${options[@]}" "${alone[@]}"
        ;;
    esac
}

# rows COMPILER: flags, one row a line; those of aarch64 begin with "aarch64". What has been wrong before comes first.
rows() { all_rows "$1" | grep -E -e "$pattern" || :; }

if [ "${list-}" ]; then
    for compiler in "${compilers[@]}"; do rows "$compiler" | sed "s/^/$compiler /"; done
    exit
fi

# lacking FLAGS: a feature that this processor lacks and code for them may need.
lacking() {
    local features='' feature
    case $1 in
    *-march=x86-64-v2*) features="ssse3 sse4_2 popcnt" ;;
    *-march=x86-64-v3* | *-march=haswell* | *-march=znver[1-3]*) features="avx2 fma f16c bmi2 movbe" ;;
    *-march=x86-64-v4* | *-march=skylake-avx512*) features="avx512bw avx512cd avx512dq avx512vl" ;;
    *-march=znver4*) features="avx512vl avx512_bf16 avx512_vpopcntdq avx512_vbmi2 vaes" ;;
    *-march=sapphirerapids*) features="avx512vl avx512_bf16 avx512_fp16 avx_vnni" ;;
    esac
    for feature in $features; do
        grep -qw "$feature" /proc/cpuinfo || { echo "$feature" && return; }
    done
}

# ---- one row ------------------------------------------------------------------------------------------

header=$(realpath "${HEADER:-$root/gdn_varlen.h}")
key=$(cat "$header" "$root/tests/bits/bits.c" "$root/tests/support/cpu.h" | sha256sum | cut -c 1-16)
work=$build/work/$key
results=$build/results-$key # compiler, version, flags, result, seconds
mkdir -p "$work"
# Copies: the tree may change while this runs.
cp "$header" "$work/gdn_varlen.h"
cp "$root/tests/bits/bits.c" "$root/tests/support/cpu.h" "$work"
touch "$results"

# row COMPILER VERSION FLAGS: adds a line to the results.
row() {
    local flags=$3 result start=$SECONDS feature program log command=() run=()
    program=$(mktemp "$work/XXXXXX")
    log=$program.log
    feature=$(lacking "$flags")
    command=("$1")
    if [[ $flags == aarch64* ]]; then
        if [[ $1 == gcc* ]]; then command=("aarch64-linux-gnu-$1"); else command+=(--target=aarch64-linux-gnu); fi
        run=(qemu-aarch64 -cpu max)
        flags="${flags#aarch64 } -static"
    fi
    # shellcheck disable=SC2206 # split into words on purpose
    command+=(-std=c11 $flags)
    if ((${#run[@]} > 0)) && ! command -v "${run[0]}" >/dev/null; then
        result="MISSING: ${run[0]}"
    elif ! find_program "${command[0]}"; then
        result="MISSING: ${command[0]}"
    elif ! "${inside[@]}" "${command[@]}" -Werror -Wno-unused-command-line-argument -E -x c /dev/null >"$log" 2>&1; then
        result="unknown: $(grep -m 1 -o 'error: .*' "$log")"
    elif ! timeout 1200 "${inside[@]}" "${command[@]}" -I "$work" "$work/bits.c" -o "$program" -lm >"$log" 2>&1; then
        result="FAILED: does not compile: $(grep -m 1 -E 'error|cannot' "$log")"
        if [[ $result == *'gdn_varlen.h: '* ]]; then result="refused: ${result##*gdn_varlen.h: }"; fi
        if grep -q gdni_double_constants "$log"; then result="refused: double constants as float"; fi
    elif [ "$feature" ]; then
        result="not run: this processor lacks $feature"
    elif ((${#run[@]} > 0)); then
        if timeout 1200 "${run[@]}" "$program" --require neon >"$log" 2>&1; then result=ok; else result=FAILED; fi
    else
        if timeout 1200 "${inside[@]}" "$program" >"$log" 2>&1; then result=ok; else result=FAILED; fi
    fi
    if [ "$result" = FAILED ]; then
        result="FAILED: $(grep -c '^FAILED: .*: ' "$log" || :) cases: $(head -n 1 "$log")"
    fi
    printf '%s\t%s\t%s\t%s\t%d\n' "$1" "$2" "$3" "$result" $((SECONDS - start)) >>"$results"
    rm -f "$program" "$log"
}

# ---- all of them --------------------------------------------------------------------------------------

# Rows outside, compilers inside: what is done when this is interrupted says something of every compiler.
declare -A version
for compiler in "${compilers[@]}"; do
    version[$compiler]=-
    if find_program "$compiler"; then version[$compiler]=$("${inside[@]}" "$compiler" -dumpfullversion -dumpversion); fi
done
declare -A done_already
while IFS=$'\t' read -r compiler number flags result _; do
    [[ $result == FAILED* || $result == MISSING* ]] || done_already[$compiler $number $flags]=1
done <"$results"
for ((i = 1; ; i++)); do
    more=''
    for compiler in "${compilers[@]}"; do
        flags=$(rows "$compiler" | sed -n "${i}p")
        [ "$flags" ] || continue
        more=1
        [ "${version[$compiler]}" != - ] || continue
        [ ! "${done_already[$compiler ${version[$compiler]} $flags]-}" ] || continue
        while (($(jobs -rp | wc -l) >= ${JOBS:-$(nproc)})); do wait -n; done
        row "$compiler" "${version[$compiler]}" "$flags" &
    done
    [ "$more" ] || break
done
wait

# The last result of each row.
failed=0
for compiler in "${compilers[@]}"; do
    if [ "${version[$compiler]}" = - ]; then
        printf '%-9s MISSING\n' "$compiler"
        continue
    fi
    rows "$compiler" | awk -F '\t' -v compiler="$compiler" -v version="${version[$compiler]}" '
        NR == FNR { wanted[$1] = 1; order[++n] = $1; next }
        $1 == compiler && $2 == version && $3 in wanted { result[$3] = $4; seconds[$3] = $5 }
        END {
            for (i = 1; i <= n; i++) {
                kind = result[order[i]]
                sub(/:.*/, "", kind)
                count[kind == "" ? "not yet" : kind]++
                time += seconds[order[i]]
                if (kind ~ /FAILED|MISSING|refused/) details = details sprintf("    %s: %s\n", order[i], result[order[i]])
            }
            printf "%-9s %-8s %3d rows: %d ok, %d failed", compiler, version, n, count["ok"], count["FAILED"]
            split("MISSING,unknown,refused,not run,not yet", kinds, ",")
            for (i = 1; i in kinds; i++) if (count[kinds[i]]) printf ", %d %s", count[kinds[i]], kinds[i]
            printf "; %d s\n%s", time, details
            exit count["FAILED"] > 0
        }' - "$results" || failed=1
done
exit $failed
