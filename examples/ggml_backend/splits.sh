#!/bin/sh
# Loads the backend as a user does, by GGML_BACKEND_PATH, and looks at what ggml's scheduler does with it: every Gated
# DeltaNet node of the model's graphs is the backend's, nothing else is, and nothing is copied for it.
#
#   splits.sh TEST_MODEL MODEL LIBRARY
set -eu
. "$(dirname -- "$0")/../../tests/usage.sh"
usage_of 3 3 "$@"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
GGML_BACKEND_PATH=$3 GGML_SCHED_DEBUG=2 "$1" "$2" >"$log" 2>&1 || { tail -n 20 "$log" && exit 1; }
awk '
    /^## SPLIT / { splits += /: GDN /; copies += !/# 0 inputs/ }
    /^node #/ {
        ours = /\): .* \[ *GDN *\] use=/
        nodes += /\(GATED_DELT\)/
        misplaced += /\(GATED_DELT\)/ != ours
    }
    END {
        printf "%d nodes of the operator, %d splits, %d splits with copies, %d nodes on the wrong backend\n", nodes,
            splits, copies, misplaced
        exit !(nodes > 0 && splits == nodes && copies == 0 && misplaced == 0)
    }' "$log"
