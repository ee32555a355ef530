#!/bin/sh
# Is one version of the header as fast as another? Builds gdn_bench with each, lets the two run in turns, prints a table.
#
#   tests/bench/compare.sh OLD NEW [--rounds N] [--seconds S] [--within PERCENT] [OPTION OF gdn_bench...]
#
# OLD and NEW are folders with a gdn_varlen.h. Where one is a whole checkout whose gdn_bench knows --unchecked, that is
# built, otherwise the one beside this script; the cases are those that both know.
#
# The machine may be slow for seconds at a time, so turns are short: for each case old, new, then the next case; in the
# next round new, old. Each turn is a process of its own, which lies elsewhere in memory. Both builds are checked against
# the oracle once, before.
#
#   --rounds N         turns of each case and build (10)
#   --seconds S        of one turn, besides making its inputs (0.2)
#   --within PERCENT   what counts as equal (3). Cases that are not proved equal get more turns, up to three times as many
#                      again.
#
# The columns: the best call of each build in microseconds, and new over old; median: of the same ratio of the two turns
# of each round, which were neighbours in time, each with the median of its calls; between: where that median lies with
# 95 % confidence. The verdict is of the interval, as the best of a build is luck on a busy machine: equal, all of it is
# within PERCENT of 1; slower or faster, all of it is on that side and the median outside; unsure otherwise. Exit status
# 1: a case is slower, or a result is wrong; 2: bad usage, or something is missing; 3: none is slower, but one unsure. CC
# and CFLAGS (-O2) build; BUILD_DIR (build-compare/) keeps the programs and all lines in compare.txt. Standard error
# says how far it is.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build-compare}

fail() {
    echo "tests/bench/compare.sh: $1" >&2
    exit 2
}

progress() { echo "tests/bench/compare.sh: $1" >&2; }

usage() { sed -n '/^#   tests/,/^set/s/^# \{0,1\}//p' "$0"; }

case ${1:-} in
--help | -h)
    usage
    exit 0
    ;;
esac
if [ $# -lt 2 ]; then
    usage >&2
    exit 2
fi
old=$1 new=$2 rounds=10 seconds=0.2 within=3
shift 2
for option; do # those of this script are taken out, the others come round again to the end
    if [ -n "${name:-}" ]; then
        case $name:$option in *: | *:*[!0-9.]* | rounds:*.* | rounds:0) fail "a number is missing after --$name" ;; esac
        eval "$name=\$option"
        name=
    else
        case $option in
        --rounds | --seconds | --within) name=${option#--} ;;
        *) set -- "$@" "$option" ;;
        esac
    fi
    shift
done
[ -z "${name:-}" ] || fail "a number is missing after --$name"

# build_one NAME FOLDER
build_one() {
    [ -f "$2/gdn_varlen.h" ] || fail "there is no $2/gdn_varlen.h"
    sources=$root/tests
    if grep -qs -e '"--unchecked"' "$2/tests/bench/gdn_bench.c"; then sources=$2/tests; fi
    # shellcheck disable=SC2086 # flags are split into words on purpose
    ${CC:-cc} -std=c11 ${CFLAGS:--O2} -pthread -I"$2" -I"$sources/support" -I"$sources/cmocka" -o "$build/$1" \
        "$sources/bench/gdn_bench.c" "$sources/bench/rates.c" "$sources/bench/threads.c" "$sources/bench/workload.c" \
        "$sources/support/elements.c" "$sources/support/gdn_impl.c" "$sources/support/rng.c" \
        "$sources/support/test.c" "$sources/cmocka/cmocka.c" -lm >"$build/$1.log" 2>&1 ||
        { tail -n 20 "$build/$1.log" >&2 && fail "gdn_bench cannot be built with $2/gdn_varlen.h"; }
}

# turn NAME CASE ROUND OPTION...
turn() {
    name=$1 case=$2 round=$3
    shift 3
    "$build/$name" "$@" --case "$case" --unchecked --rounds 1 --seconds "$seconds" >"$build/line" ||
        fail "$name: case $case failed"
    sed "s/^/build=$name round=$round /" "$build/line" >>"$build/compare.txt"
}

# table FILE: the table; the names of the cases outside into FILE.
table() {
    awk -v within="$within" -v outside="$1" '
        function median(values, count,    i, j, x) {
            for (i = 2; i <= count; i++) {
                x = values[i]
                for (j = i - 1; j >= 1 && values[j] > x; j--) values[j + 1] = values[j]
                values[j + 1] = x
            }
            return count % 2 ? values[(count + 1) / 2] : (values[count / 2] + values[count / 2 + 1]) / 2
        }
        function lower(key, x) { if (!(key in best) || x < best[key]) best[key] = x }
        # of calls that were interrupted only where there are no others
        function best_of(key) { return key in best ? best[key] : best[key ",interrupted"] }
        {
            for (i = 1; i <= NF; i++) {
                split($i, pair, "=")
                value[pair[1]] = pair[2]
            }
            c = value["case"]
            if (!(c in rounds)) order[++cases] = c
            if (value["round"] > rounds[c]) rounds[c] = value["round"]
            lower(c "," value["build"] (value["interrupted"] + 0 ? ",interrupted" : ""), value["best_us"] + 0)
            typical[c "," value["build"] "," value["round"]] = value["median_us"] + 0
        }
        END {
            printf "%-24s %6s %12s %12s %7s %7s %15s\n", "case", "rounds", "old us", "new us", "best", "median",
                "between"
            printf "" >outside
            for (i = 1; i <= cases; i++) {
                c = order[i]
                n = rounds[c]
                for (r = 1; r <= n; r++) ratios[r] = typical[c ",new," r] / typical[c ",old," r]
                middle = median(ratios, n) # sorts them; the ranks of the interval are those of a fair coin
                rank = int(n / 2 - 0.98 * sqrt(n) + 1)
                if (rank < 1) rank = 1
                low = ratios[rank]
                high = ratios[n + 1 - rank]
                verdict = "unsure"
                if (low >= 1 / (1 + within / 100) && high <= 1 + within / 100 && n >= 5) verdict = "equal"
                else if (low > 1 && middle > 1 + within / 100 && n >= 5) verdict = "slower"
                else if (high < 1 && middle < 1 / (1 + within / 100) && n >= 5) verdict = "faster"
                tally[verdict]++
                if (verdict != "equal") print c >outside
                printf "%-24s %6d %12.2f %12.2f %7.3f %7.3f   %.3f - %.3f  %s\n", c, n, best_of(c ",old"),
                    best_of(c ",new"), best_of(c ",new") / best_of(c ",old"), middle, low, high, verdict
            }
            printf "%d cases, within %g %%: %d equal, %d slower, %d faster, %d unsure\n", cases, within,
                tally["equal"], tally["slower"], tally["faster"], tally["unsure"]
            exit tally["slower"] > 0 ? 1 : tally["unsure"] > 0 ? 3 : 0
        }' "$build/compare.txt"
}

mkdir -p "$build"
progress 'building'
build_one old "$old"
build_one new "$new"
"$build/old" --list "$@" >"$build/old.cases" || exit 2
"$build/new" --list "$@" >"$build/new.cases" || exit 2
grep -Fx -f "$build/old.cases" "$build/new.cases" >"$build/cases" || fail "there is no case that both know"
progress "checking, cases: $(wc -l <"$build/cases")"
for name in old new; do
    while read -r case; do
        "$build/$name" "$@" --case "$case" --rounds 1 --seconds 0.001 >/dev/null || {
            echo "tests/bench/compare.sh: $name: case $case failed" >&2
            exit 1
        }
    done <"$build/cases"
done

: >"$build/compare.txt"
cp "$build/cases" "$build/left"
round=0
for again in 1 2 3 4; do
    limit=$((again * rounds))
    while [ "$round" -lt "$limit" ]; do
        round=$((round + 1))
        progress "round $round of $limit, cases: $(wc -l <"$build/left")"
        while read -r case; do
            if [ $((round % 2)) -eq 1 ]; then order='old new'; else order='new old'; fi
            for name in $order; do turn "$name" "$case" "$round" "$@"; done
        done <"$build/left"
    done
    table "$build/left" >"$build/table" || :
    [ -s "$build/left" ] || break
done
table "$build/left"
