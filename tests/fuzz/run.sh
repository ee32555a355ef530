#!/bin/sh
# Fuzzes with libFuzzer, under the address and undefined behaviour sanitizers (needs clang, and libclang-rt-dev or its
# like).
#
#   tests/fuzz/run.sh SECONDS [JOBS]     JOBS processes at a time (default: all processors), SECONDS for each
#   tests/fuzz/run.sh bundle FOLDER      only builds, and puts the programs into FOLDER with the shared libraries that
#                                        they need and a script `run SECONDS [JOBS]` for a machine that lacks all this
#
# The corpus grows in $BUILD_DIR (default build-fuzz/) from call to call. An input that fails is left there as
# TARGET-crash-...; after the fault is mended it is added to tests/fuzz/seeds/TARGET. FUZZ_CC names the compiler.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build-fuzz}
cc=${FUZZ_CC:-clang}
targets="params same case"

if [ $# -lt 1 ]; then
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0" >&2
    exit 2
fi
mkdir -p "$build"

# compile OUTPUT ARGUMENT...: anew only where a source is newer.
compile() {
    output=$1
    shift
    if [ -e "$output" ] && [ -z "$(find "$root/gdn_varlen.h" "$root/examples" "$root/tests/support" "$root/tests/fuzz" \
        -name '*.[ch]' -newer "$output")" ]; then
        return
    fi
    echo "compiling $(basename "$output")"
    "$cc" -std=c11 -O1 -g -fsanitize=address,undefined,"$fuzzer" -fno-sanitize-recover=all \
        -I "$root" -I "$root/examples" -I "$root/tests/support" "$@" -o "$output.new"
    mv "$output.new" "$output"
}

fuzzer=fuzzer-no-link
for source in "$root"/tests/support/*.c; do
    compile "$build/$(basename "$source" .c).o" -c "$source"
done
fuzzer=fuzzer
compile "$build/fuzz_params" "$root/tests/fuzz/fuzz_params.c" "$build"/*.o -lcmocka -lm -pthread
compile "$build/fuzz_same" "$root/tests/fuzz/fuzz_same.c" "$build"/*.o -lcmocka -lm -pthread
compile "$build/fuzz_case" "$root/tests/fuzz/fuzz_case.c" -lm

if [ "$1" = bundle ]; then
    folder=$2
    mkdir -p "$folder/lib" "$folder/corpus"
    for target in $targets; do
        cp "$build/fuzz_$target" "$folder/"
        cp -R "$root/tests/fuzz/seeds/$target" "$folder/corpus/"
        if [ -d "$build/corpus/$target" ]; then cp -R "$build/corpus/$target" "$folder/corpus/"; fi
    done
    # The libraries, the loader among them, so that another C library does not matter.
    for target in $targets; do ldd "$build/fuzz_$target"; done |
        sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u |
        while read -r library; do cp -L "$library" "$folder/lib/"; done
    cp "$root/tests/fuzz/fuzz.sh" "$folder/run"
    du -sh "$folder"
    exit
fi

for target in $targets; do
    mkdir -p "$build/corpus/$target"
    cp -R "$root/tests/fuzz/seeds/$target/." "$build/corpus/$target/"
done
cp "$root/tests/fuzz/fuzz.sh" "$build/run"
exec sh "$build/run" "$@"
