#!/bin/sh
# Somebody else's projects, each with another way to the header; the program runs from C and from C++.
#
#   tests/consumers/run.sh [WAY...]    copy, pkg_config, find_package, add_subdirectory, fetch_content, standards,
#                                      export, static, shared (default: all)
#
# copy: of what release.sh writes. standards: from a project of C90 and C++98, and from one of C++ alone. export: by the
# package of a project that exports its own target. static and shared: with the compiled library, by CMake and by
# pkg-config. The compilers are $CC and $CXX; exit status 77: a program that a way needs is missing.
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 any "$@"

ways="copy pkg_config find_package add_subdirectory fetch_content standards export static shared"
# shellcheck disable=SC2086 # split into words on purpose
[ $# -gt 0 ] || set -- $ways
for way; do
    case " $ways " in
    *" $way "*) ;;
    *) wrong_usage "no way '$way'" ;;
    esac
done
if [ $# -gt 1 ]; then
    all=0
    for way; do
        status=0
        sh "$0" "$way" || status=$?
        [ $status = 0 ] || [ $all = 1 ] || all=$status # a failure counts more than what was skipped
    done
    exit $all
fi
way=$1
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CC="${CC:-cc}" CXX="${CXX:-c++}"
# One instance of the kernel is quick to compile. The libraries have all of them.
export CFLAGS=-DGDN_NO_SIMD CXXFLAGS=-DGDN_NO_SIMD

fail() {
    echo "FAILED: $way: $1" >&2
    exit 1
}

# quietly COMMAND...: its output only where it fails.
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2 && fail "$*"; }; }

needs() {
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "SKIPPED: $way: there is no $program" && exit 77; }
    done
}

# run_programs FOLDER NAME PROGRAM...
run_programs() {
    folder=$1 name=$2
    shift 2
    for program; do
        "$folder/$program" || fail "$program"
        echo "ok: $way: $name: $program"
    done
}

# install_package TARGET ARGUMENT OF CMAKE...: builds the target, if any, and installs to $prefix, by way of another
# folder, so that nothing may remember its place.
install_package() {
    target=$1
    shift
    quietly env CFLAGS= cmake -S "$root" -B "$work/build" -DBUILD_TESTING=OFF -DGDN_EXAMPLES=OFF \
        -DCMAKE_INSTALL_PREFIX="$work/stage" "$@"
    [ -z "$target" ] || quietly cmake --build "$work/build" --target "$target"
    quietly cmake --install "$work/build"
    prefix=$work/prefix
    rm -rf "$prefix"
    cp -R "$work/stage" "$prefix"
    pc=$(find "$prefix" -name pkgconfig)
    export PKG_CONFIG_PATH="$pc" LD_LIBRARY_PATH="${pc%/pkgconfig}"
}

# build_project PROJECT ARGUMENT OF CMAKE...
build_project() {
    project=$1
    shift
    rm -rf "${work:?}/$project"
    quietly cmake -S "$here/$project" -B "$work/$project" "$@"
    quietly cmake --build "$work/$project"
}

with_cmake() {
    build_project "$@"
    run_programs "$work/$1" "$1" program_c program_cpp
}

with_pkg_config() {
    mkdir "$work/make"
    quietly make -C "$here/pkg_config" OUT="$work/make" "$@"
    run_programs "$work/make" pkg_config program_c program_cpp
}

# The library's symbols for the linker are those of the interface.
check_symbols() {
    sed -n '/end of the interface/q; s/^GDN_API.* \**\(gdn_[a-z0-9_]*\)(.*/\1/p' "$root/gdn_varlen.h" |
        sort >"$work/declared"
    nm "$@" --defined-only | awk 'NF == 3 { print $3 }' | sort >"$work/exported"
    diff "$work/declared" "$work/exported" || fail "the symbols in < are declared, those in > are exported"
    echo "ok: $way: exports the $(wc -l <"$work/exported" | tr -d ' ') functions of the interface"
}

case $way in
copy)
    quietly "$here/../release.sh" "$work"
    (cd "$work" && quietly sha256sum -c gdn_varlen.h.sha256)
    cp "$here/../compile/user.c" "$work"
    cp "$work/user.c" "$work/user.cpp"
    # shellcheck disable=SC2086 # split into words on purpose
    (cd "$work" && quietly $CC $CFLAGS -O2 -DGDN_IMPLEMENTATION user.c -o program_c -lm)
    # shellcheck disable=SC2086
    (cd "$work" && quietly $CXX $CXXFLAGS -O2 -DGDN_IMPLEMENTATION user.cpp -o program_cpp -lm)
    run_programs "$work" cc program_c program_cpp
    ;;
pkg_config)
    needs pkg-config make
    install_package ''
    with_pkg_config
    ;;
find_package)
    install_package ''
    with_cmake find_package -DCMAKE_PREFIX_PATH="$prefix"
    cat >"$work/word_size.cmake" <<'EOF'
cmake_minimum_required(VERSION 3.16)
set(CMAKE_SIZEOF_VOID_P 4)
set(PACKAGE_FIND_VERSION 0.2)
set(PACKAGE_FIND_VERSION_MAJOR 0)
set(PACKAGE_FIND_VERSION_MINOR 2)
include(${FILE})
if(PACKAGE_VERSION_UNSUITABLE OR NOT PACKAGE_VERSION_COMPATIBLE)
    message(FATAL_ERROR "refused: ${PACKAGE_VERSION}")
endif()
EOF
    quietly cmake -DFILE="$(find "$prefix" -name '*-config-version.cmake')" -P "$work/word_size.cmake"
    echo "ok: $way: from a build with another word size"
    ;;
add_subdirectory | fetch_content)
    with_cmake "$way"
    ;;
standards)
    with_cmake standards
    build_project cxx_only
    run_programs "$work/cxx_only" "cxx_only, subfolder" program_cpp
    install_package ''
    build_project cxx_only -DCMAKE_PREFIX_PATH="$prefix"
    run_programs "$work/cxx_only" "cxx_only, installed" program_cpp
    ;;
export)
    build_project export -DCMAKE_INSTALL_PREFIX="$work/stage"
    quietly cmake --install "$work/export"
    with_cmake export/user -DCMAKE_PREFIX_PATH="$work/stage"
    ;;
static | shared)
    needs pkg-config make nm readelf
    shared=OFF flags=--static
    if [ "$way" = shared ]; then shared=ON flags=; fi
    install_package '' # over which the library is installed; cmake takes files of the same second for the same
    sleep 1
    # Position-independent, also where the compiler would not make it so.
    install_package gdn_varlen_library -DGDN_BUILD_LIBRARY=ON -DBUILD_SHARED_LIBS=$shared -DCMAKE_C_FLAGS=-fno-pie
    with_cmake find_package -DCMAKE_PREFIX_PATH="$prefix" -DGDN=gdn_varlen::library
    with_pkg_config PACKAGE=gdn_varlen_library STATIC="$flags"
    if [ "$way" = static ]; then
        check_symbols -g "$LD_LIBRARY_PATH/libgdn_varlen.a"
        quietly "$CC" -shared -o "$work/plugin.so" -Wl,--whole-archive "$LD_LIBRARY_PATH/libgdn_varlen.a" \
            -Wl,--no-whole-archive -lm
        echo "ok: $way: into a shared object"
    else
        check_symbols -D "$LD_LIBRARY_PATH/libgdn_varlen.so"
        version=$(pkg-config --modversion gdn_varlen_library)
        [ -f "$LD_LIBRARY_PATH/libgdn_varlen.so.$version" ] || fail "no libgdn_varlen.so.$version"
        readelf -d "$LD_LIBRARY_PATH/libgdn_varlen.so" | grep -q "libgdn_varlen.so.${version%.*}\]" || fail soname
    fi
    ;;
esac
