#!/bin/sh
# Fuzzes with libFuzzer, under the address and undefined behaviour sanitizers (needs clang, and libclang-rt-dev or its
# like).
#
#   tests/fuzz/run.sh SECONDS [JOBS]     JOBS processes at a time (default: all processors), SECONDS for each
#   tests/fuzz/run.sh bundle FOLDER      makes FOLDER a place to fuzz from on a machine that lacks all this: the programs
#                                        with the shared libraries that they need, the corpus, and this script
#   FOLDER/run.sh SECONDS [JOBS]         there: builds nothing
#
# The corpus grows in $BUILD_DIR (default build-fuzz/), or in the folder, from call to call. An input that fails is left
# there as TARGET-crash-...; after the fault is mended it is added to tests/fuzz/seeds/TARGET. FUZZ_CC names the compiler.
set -eu

# This script may lie in a bundle, without tests/usage.sh.
usage() { sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"; }
case $#,${1-} in
1,-h | 1,--help)
    usage
    exit
    ;;
2,bundle) ;;
1,*[!0-9]* | 2,*[!0-9]* | 0,* | [3-9],*)
    usage >&2
    exit 2
    ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..
targets="params same case"
if [ -x "$here/fuzz_params" ]; then
    build=$here
else
    build=${BUILD_DIR:-$root/build-fuzz}
    mkdir -p "$build"
    build=$(CDPATH='' cd -- "$build" && pwd)
fi

# ---- building ------------------------------------------------------------------------------------------------------

# compile OUTPUT ARGUMENT...: anew only where a source is newer.
compile() {
    output=$build/$1
    shift
    if [ -e "$output" ] && [ -z "$(find "$root/gdn_varlen.h" "$root/examples" "$root/tests/support" "$here" \
        -name '*.[ch]' -newer "$output")" ]; then
        return
    fi
    echo "compiling $(basename "$output")"
    "${FUZZ_CC:-clang}" -std=c11 -O1 -g -fsanitize=address,undefined,"$fuzzer" -fno-sanitize-recover=all \
        -I "$root" -I "$root/examples" -I "$root/tests/support" "$@" -o "$output.new"
    mv "$output.new" "$output"
}

build_programs() {
    fuzzer=fuzzer-no-link
    for source in "$root"/tests/support/*.c; do
        compile "$(basename "$source" .c).o" -c "$source"
    done
    fuzzer=fuzzer
    compile fuzz_params "$here/fuzz_params.c" "$build"/*.o -lcmocka -lm -pthread
    compile fuzz_same "$here/fuzz_same.c" "$build"/*.o -lcmocka -lm -pthread
    compile fuzz_case -DGDNI_IMPLEMENTED "$here/fuzz_case.c" "$build/gdn_impl.o" -lm
}

bundle() {
    mkdir -p "$1/lib" "$1/corpus"
    for target in $targets; do
        cp "$build/fuzz_$target" "$1/"
        cp -R "$here/seeds/$target" "$1/corpus/"
        if [ -d "$build/corpus/$target" ]; then cp -R "$build/corpus/$target" "$1/corpus/"; fi
    done
    # The libraries, the loader among them, so that another C library does not matter.
    for target in $targets; do ldd "$build/fuzz_$target"; done |
        sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u |
        while read -r library; do cp -L "$library" "$1/lib/"; done
    cp "$0" "$1/run.sh"
    du -sh "$1"
}

# ---- fuzzing -------------------------------------------------------------------------------------------------------

# fuzz SECONDS JOBS, in the folder of the programs.
fuzz() {
    seconds=$1 jobs=$2
    processes=$jobs
    if [ "$processes" -lt 3 ]; then processes=3; fi
    loader=
    for file in lib/ld-*; do # the one that a bundle brings along
        if [ -x "$file" ]; then loader="$PWD/$file --library-path $PWD/lib"; fi
    done
    export seconds loader ASAN_OPTIONS=allocator_may_return_null=1:quarantine_size_mb=16
    rm -f ./*.log

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
    return $status
}

if [ "$build" != "$here" ]; then build_programs; fi
if [ "$1" = bundle ]; then
    bundle "$2"
    exit
fi
if [ "$build" != "$here" ]; then
    for target in $targets; do
        mkdir -p "$build/corpus/$target"
        cp -R "$here/seeds/$target/." "$build/corpus/$target/"
    done
fi
cd "$build"
fuzz "$1" "${2:-$(nproc)}"
