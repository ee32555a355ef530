#!/bin/sh
# The second half of run.sh, which puts it beside the programs as `run`: run SECONDS [JOBS].
set -u
cd "$(dirname -- "$0")" || exit 2
seconds=$1 jobs=${2:-$(nproc)}
targets="params same case"
processes=$jobs
if [ "$processes" -lt 3 ]; then processes=3; fi

export ASAN_OPTIONS=allocator_may_return_null=1:quarantine_size_mb=16
export seconds
rm -f ./*.log
# The loader that was brought along, if any.
loader=
for file in lib/ld-*; do
    if [ -x "$file" ]; then loader="$PWD/$file --library-path $PWD/lib"; fi
done
export loader

number=0
while [ "$number" -lt "$processes" ]; do
    for target in $targets; do
        if [ "$number" -lt "$processes" ]; then echo "$target $number"; fi
        number=$((number + 1))
    done
done | xargs -P "$jobs" -L 1 sh -c '
    length=160
    if [ "$0" = case ]; then length=4096; fi
    $loader ./"fuzz_$0" -max_total_time="$seconds" -max_len=$length -timeout=20 -rss_limit_mb=4096 -reload=5 \
        -print_final_stats=1 -verbosity=1 -artifact_prefix="$0-" "corpus/$0" >"$0.$1.log" 2>&1 ||
        touch "$0.$1.failed.log"' 

for target in $targets; do
    cat "$target".[0-9]*.log | awk -v target="$target" '
        /^stat::number_of_executed_units:/ { runs += $2; processes++ }
        / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:" && $(i + 1) > cov) cov = $(i + 1) }
        END { printf "%-8s %d processes, %d inputs run, %d edges covered\n", target, processes, runs, cov }'
done
status=0
for failed in *.failed.log; do
    [ -e "$failed" ] || continue
    log=${failed%.failed.log}.log
    echo "FAILED: $PWD/$log:"
    tail -n 60 "$log"
    status=1
done
exit $status
