#!/bin/sh
# The conventions of other systems stand in three places: the table of README.md, the table in the comment at the head
# of gdn_varlen.h, and GDN_SYSTEMS. The two tables agree cell by cell, and each cell with the presets of its row.
#
#   tests/compile/conventions.sh [README [HEADER]]       default: README.md and gdn_varlen.h of this tree
set -eu
. "$(dirname -- "$0")/../usage.sh"
usage_of 0 2 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
readme=${1-$root/README.md} header=${2-$root/gdn_varlen.h}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: conventions: $1" >&2
    exit 1
}

# Both tables as lines "system|state_layout|head_map|gate_input|beta_input|l2norm_form, eps|padding".
awk '
    /^\| system / { inside = 1 }
    !/^\|/ { inside = 0 }
    inside && !/^\|[-|]*$/ {
        gsub(/`/, "")
        gsub(/ *\| */, "|")
        sub(/^\|/, "")
        sub(/\|$/, "")
        print
    }' "$readme" >"$work/readme"
awk '
    /^ \* +system  +state_layout / { inside = 1 }
    /^ \* *$/ { inside = 0 }
    inside && !/---/ {
        sub(/^ \* +/, "")
        sub(/ +$/, "")
        gsub(/  +/, "|")
        print
    }' "$header" >"$work/header"
[ "$(wc -l <"$work/header")" -gt 5 ] || fail "there is no table in the comment of $header"
diff "$work/readme" "$work/header" >"$work/diff" || {
    cat "$work/diff" >&2
    fail "< README.md, > the comment in the header"
}

# GDN_SYSTEMS as lines "code|layout|heads|gate|beta|form|eps|padding|null slot".
awk '
    /^#define GDN_SYSTEMS\(/ { inside = 1; next }
    inside { last = !/\\$/ }
    inside && /X\(/ {
        gsub(/.*X\(|\).*|[" ]/, "")
        count = split($0, x, ",")
        if (count != 10) { print "FAILED: GDN_SYSTEMS: not ten columns: " $0; exit }
        print x[1] "|" x[3] "|" x[4] "|" x[5] "|" x[6] "|" x[7] "|" x[8] "|" x[9] "|" x[10]
    }
    last { exit }' "$header" >"$work/systems"
! grep -m 1 FAILED "$work/systems" >&2 || exit 1

# Notes, in both places.
notes() {
    awk '/\(1\) .*state_v_first/ { lines = 9 } lines-- > 0 { sub(/^ \* */, ""); print }' "$1" |
        tr -d '`' | tr -s ' \n' ' '
}
for file in "$readme" "$header"; do
    for note in '(1) state_v_first selects VK' '(3) fused_recurrent' '(4) [^(]*lot 0' '(6) .*lm 0.32'; do
        notes "$file" | grep -q "$note" || fail "$file: no note '$note'"
    done
done

# Rows, their presets, and what a cell may name although no preset has it: a letter for the column and the value.
cat >"$work/rows" <<'END'
SGLang Triton, to 2026-03|SGLANG_KV|
SGLang Triton, later|SGLANG|
SGLang, vLLM packed decode|SGLANG_PACKED_DECODE VLLM_PACKED_DECODE|
SGLang, vLLM CPU decode|SGLANG_CPU VLLM_CPU|
SGLang, vLLM CPU chunks|SGLANG_CPU_CHUNK VLLM_CPU_CHUNK|
vLLM Triton|VLLM VLLM_RECURRENT|
FLA|FLA|layout=VK gate=RAW
FlashInfer decode|FLASHINFER_DECODE FLASHINFER_DECODE_KV|
FlashInfer MTP|FLASHINFER_MTP|
FlashInfer prefill, mlx-lm|FLASHINFER_PREFILL MLX_LM|
llama.cpp, qwen35|GGML|
llama.cpp, qwen3next|LLAMA_QWEN3NEXT|
transformers|TRANSFORMERS|
END
# The null slots are note (4).
awk -F '|' -v readme="$readme" '
    function fail(text) { print "FAILED: conventions: " text; failed = 1 }
    # The values of a cell, blank-separated and sorted as they are compared: each once.
    function add(set, value) { return index(" " set " ", " " value " ") ? set : set (set == "" ? "" : " ") value }
    function same(x, y, i, n, part) {
        n = split(x, part, " ")
        for (i = 1; i <= n; i++) if (!index(" " y " ", " " part[i] " ")) return 0
        n = split(y, part, " ")
        for (i = 1; i <= n; i++) if (!index(" " x " ", " " part[i] " ")) return 0
        return 1
    }
    # cell -> set of values; "-" is the default of the column.
    function values(cell, default_value, i, n, part, set) {
        gsub(/ *\([0-9]\)/, "", cell)
        gsub(/GDN_STATE_/, "", cell)
        n = split(cell, part, / or | \/ /)
        set = ""
        for (i = 1; i <= n; i++) set = add(set, part[i] == "-" ? default_value : part[i])
        return set
    }
    FILENAME ~ /systems$/ {
        codes[$1]
        layout[$1] = $2; heads[$1] = $3; gate[$1] = $4; beta[$1] = $5; norm[$1] = $6 "," $7
        padding[$1] = $8; null[$1] = $9
        next
    }
    FILENAME ~ /rows$/ { presets[$1] = $2; besides[$1] = $3; next }
    $1 == "system" { next }
    !($1 in presets) { fail("no preset belongs to the row " $1); next }
    {
        seen[$1]
        count = split(presets[$1], list, " ")
        want["layout"] = want["heads"] = want["gate"] = want["beta"] = want["norm"] = want["padding"] = ""
        for (i = 1; i <= count; i++) {
            code = list[i]
            if (!(code in codes)) { fail("GDN_SYSTEMS has no " code ", of the row " $1); continue }
            covered[code]
            want["layout"] = add(want["layout"], layout[code])
            want["heads"] = add(want["heads"], heads[code])
            want["gate"] = add(want["gate"], gate[code])
            want["beta"] = add(want["beta"], beta[code])
            want["norm"] = add(want["norm"], norm[code])
            want["padding"] = add(want["padding"], padding[code])
            if (null[code] != (code ~ /^VLLM(_RECURRENT|_PACKED_DECODE)?$/ ? 0 : -1)) fail(code ": null slot " null[code])
        }
        count = split(besides[$1], list, " ")
        for (i = 1; i <= count; i++) {
            split(list[i], pair, "=")
            want[pair[1]] = add(want[pair[1]], pair[2])
        }
        cell = $6
        gsub(/ *\([0-9]\)/, "", cell)
        norms = cell == "-" ? "SUM_PLUS_EPS,1e-6" : cell ~ /^-, / ? "SUM_PLUS_EPS," substr(cell, 4) : cell ",1e-6"
        gsub(/ \/ /, " SUM_PLUS_EPS,", norms)
        pad = $7 == "no pool" || $7 == "none (crashes)" ? "COMPUTE" : values($7, "COMPUTE")
        check($1, "state_layout", values($2, "?"), want["layout"])
        check($1, "head_map", values($3, "GROUPED"), want["heads"])
        check($1, "gate_input", values($4, "RAW"), want["gate"])
        check($1, "beta_input", values($5, "RAW"), want["beta"])
        check($1, "l2norm_form, eps", norms, want["norm"])
        check($1, "padding", pad, want["padding"])
    }
    function check(row, column, has, wanted) {
        if (!same(has, wanted)) fail(row ", " column ": the table says " has ", GDN_SYSTEMS " wanted)
        cells++
    }
    END {
        for (row in presets) if (!(row in seen)) fail("the tables have no row " row)
        for (code in codes) if (!(code in covered)) fail(code " is in no row")
        if (!failed) print "ok: conventions: " cells " cells of README.md, the header and GDN_SYSTEMS agree"
        exit failed
    }' "$work/systems" "$work/rows" "$work/readme" >"$work/result" || { cat "$work/result" >&2 && exit 1; }
cat "$work/result"
