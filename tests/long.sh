#!/bin/sh
# What .ci/run leaves out: the list `long` of tests/check.sh, or some of its sections.
#
#   tests/long.sh [SECTION...]
#   tests/long.sh --list
set -eu
. "$(dirname -- "$0")/usage.sh"
usage_of 0 options "$@"

[ $# -gt 0 ] || set -- long
exec "$(dirname -- "$0")/check.sh" "$@"
