#!/bin/sh
# Every script says how it is used: --help and -h print that, do nothing and succeed, at once; an option that does not
# exist is refused on standard error with status 2, where the script does not hand it on to another program.
#
#   tests/test_usage.sh
set -eu
. "$(dirname -- "$0")/usage.sh"
usage_of 0 0 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/empty"
cd "$work/empty"
# What a script would make without being asked, it would make here.
export BUILD_DIR="$work/empty/build"

fail() {
    echo "FAILED: $1: $2" >&2
    failed=1
}

# run SCRIPT ARGUMENT: its status, and its output in the files out and err.
run() {
    status=0
    case $1 in
    *.py) timeout 20 "${PYTHON:-python3}" -B "$@" ;;
    *) timeout 20 "$@" ;;
    esac >"$work/out" 2>"$work/err" </dev/null || status=$?
}

# A script that forgets to look at its arguments must not install anything.
mkdir "$work/bin"
for command in apt-get sudo pip; do printf '#!/bin/sh\nexit 1\n' >"$work/bin/$command" && chmod +x "$work/bin/$command"; done
export PATH="$work/bin:$PATH"

# Scripts are what begins with #!; in Python's case, where there is a Python.
find "$root/.ci" "$root/examples" "$root/tests" -type f ! -path '*/build*' ! -path '*/.*cache*/*' -exec sh -c '
    for file; do case $(head -c 2 "$file") in "#!") echo "$file" ;; esac; done' sh {} + 2>/dev/null | sort >"$work/scripts"
command -v "${PYTHON:-python3}" >/dev/null || {
    echo "there is no Python: its scripts are left out"
    sed -i '/\.py$/d' "$work/scripts"
}

failed=0 count=0
while read -r script; do
    name=${script#"$root/"}
    count=$((count + 1))
    [ -x "$script" ] || fail "$name" "is not executable"
    # Nor is one run that does not even mention a way to ask.
    grep -qE 'usage|--help|ArgumentParser' "$script" || { fail "$name" "has no --help" && continue; }
    for option in --help -h; do
        run "$script" $option
        [ $status = 0 ] || fail "$name $option" "status $status: $(tail -n 1 "$work/err")"
        [ -s "$work/out" ] || fail "$name $option" "prints nothing"
    done
    [ $status != 0 ] || grep -q "${name##*/}" "$work/out" || fail "$name --help" "does not name the script"
    case $name in
    # These hand their arguments to ctest, gdn_bench, compare.py and pytest.
    tests/run.sh | tests/bench/*.sh | tests/gpu/run.sh | examples/python/tests/run.py) ;;
    # Nothing is read before the packages are there.
    tests/gpu/compare.py | tests/accuracy/rounding_orders.py | tests/accuracy/oracle_mpmath.py) ;;
    *)
        run "$script" --no-such-option
        [ $status = 2 ] || fail "$name --no-such-option" "status $status and not 2"
        [ -s "$work/err" ] || fail "$name --no-such-option" "says nothing on standard error"
        ;;
    esac
done <"$work/scripts"
find "$work/empty" -mindepth 1 -maxdepth 2 | sed 's/^/FAILED: left behind: /' | grep . >&2 && failed=1
[ $count -gt 20 ] || fail "the search" "found $count scripts"
echo "$count scripts"
exit $failed
