#!/bin/sh
# Every README: its relative links and anchors lead somewhere, and every path of the tree that it names exists.
# README.md has at most 260 lines of at most 120 characters; all are ASCII.
#
#   tests/compile/links.sh
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 0 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"

failed=0 links=0 paths=0 files=0
fail() {
    echo "FAILED: $1" >&2
    failed=1
}

# The anchors of a file's headings, as the usual renderers make them.
anchors() {
    awk '/^```/ { code = !code } /^#/ && !code { sub(/^#+ /, ""); print }' "$1" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9_\n-'
}

readmes=$(find . -name README.md ! -path './build*' ! -path '*/.*/*' ! -path '*/site-packages/*' | sed 's/^\.\///' |
    sort)
for readme in $readmes; do
    files=$((files + 1))
    folder=$(dirname "$readme")
    # shellcheck disable=SC2013 # links and paths have no blanks
    for link in $(grep -o '](\([^ )]*\))' "$readme" | sed 's/^](//; s/)$//' | sort -u); do
        case $link in *://*) continue ;; esac
        links=$((links + 1))
        target=${link%%#*}
        [ -z "$target" ] || [ -e "$folder/$target" ] || { fail "$readme: the link $link leads nowhere" && continue; }
        case $link in
        *'#'*)
            page=$readme
            [ -z "$target" ] || page=$folder/$target
            anchors "$page" | grep -qx -- "${link#*#}" || fail "$readme: $page has no heading for #${link#*#}"
            ;;
        esac
    done
    # tests/... and examples/... of the tree, not of a build folder; a word in capitals stands for a file.
    # shellcheck disable=SC2013
    for path in $(sed 's/\](.*)/]/' "$readme" | grep -oE '(^|[^A-Za-z0-9_./])((tests|examples|\.ci)/[A-Za-z0-9_./-]+)' |
        sed -E 's/^[^A-Za-z.]//; s/\.+$//; s/\/[A-Z]+$//' | sort -u); do
        paths=$((paths + 1))
        [ -e "$path" ] || fail "$readme: there is no $path"
    done
    ! LC_ALL=C grep -n '[^ -~]' "$readme" >&2 || fail "$readme: not ASCII"
done
[ "$(wc -l <README.md)" -le 260 ] || fail "README.md has more than 260 lines"
! grep -nE '^.{121}' README.md >&2 || fail "README.md has a line of more than 120 characters"
[ $failed = 0 ] && echo "ok: $links links and $paths paths in $files READMEs"
exit $failed
