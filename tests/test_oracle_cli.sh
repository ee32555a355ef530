#!/bin/sh
# The command line of gdn_oracle: every golden case through `run` and `compare`, and every fault that a file or an
# argument can have, each answered by exit status 2 and one line.
#
#     tests/test_oracle_cli.sh ORACLE GOLDEN_DIR TMPDIR
set -eu
. "$(dirname -- "$0")/usage.sh"
usage_of 3 3 "$@"
LC_ALL=C
export LC_ALL

oracle=$1
golden=$2
tmp=$3/oracle_cli.$$
mkdir -p "$tmp"
trap 'rm -rf "$tmp"' EXIT
checks=0

# expect STATUS LABEL ARGUMENT...: runs the program. Faults are one line on standard error and nothing else.
expect() {
    wanted=$1
    label=$2
    shift 2
    status=0
    "$oracle" "$@" >"$tmp/stdout" 2>"$tmp/stderr" || status=$?
    lines=$(wc -l <"$tmp/stderr")
    [ "$status" -eq "$wanted" ] || failed "exit status $status instead of $wanted"
    if [ "$wanted" -eq 2 ]; then
        [ "$lines" -eq 1 ] || failed "$lines lines on standard error"
        [ ! -s "$tmp/stdout" ] || failed "output beside the error"
        [ ! -e "$tmp/out" ] || failed "files written beside the error"
    else
        [ ! -s "$tmp/stderr" ] || failed "text on standard error"
    fi
    checks=$((checks + 1))
}

# says TEXT: the output of the last command has it.
says() {
    grep -qF -- "$1" "$tmp/stdout" "$tmp/stderr" || failed "nothing says: $1"
    checks=$((checks + 1))
}

failed() {
    echo "FAILED: $label: $1" >&2
    cat "$tmp/stdout" "$tmp/stderr" >&2
    exit 1
}

# npy DICT: the beginning of an .npy file with a header of 118 bytes; the data follow it.
npy() {
    printf '\223NUMPY\001\000\166\000'
    printf '%-117s\n' "$1"
}

zeros() { dd if=/dev/zero bs="$1" count=1 2>/dev/null; }

# A small case with a pool, to be damaged.
fresh() {
    rm -rf "$tmp/case" "$tmp/out"
    cp -R "$golden/seed_initial_state" "$tmp/case"
    rm "$tmp"/case/o.npy "$tmp"/case/o_f64.npy "$tmp/case/final_state.npy"
}

# key KEY VALUE: sets a key of its case.txt; without a value it takes the key away.
key() {
    grep -v "^$1 " "$tmp/case/case.txt" >"$tmp/case.txt" || true
    [ $# -eq 1 ] || echo "$1 $2" >>"$tmp/case.txt"
    mv "$tmp/case.txt" "$tmp/case/case.txt"
}

refused() { expect 2 "$1" run "$tmp/case" "$tmp/out"; }

# ---- every golden case ---------------------------------------------------------------------------------------

# tolerances DTYPE: about one unit in the last place of a 16-bit type, or the error of float32.
tolerances() {
    case $1 in
    bf16) echo "--dtype bf16 --rtol 0.0079 --atol 1e-6" ;;
    f16) echo "--dtype f16 --rtol 0.00099 --atol 1e-6" ;;
    f32) echo "--rtol 1e-6 --atol 5e-7" ;;
    *) echo "--unknown-dtype-$1" ;;
    esac
}

cases=0
for folder in "$golden"/*/; do
    name=$(basename "$folder")
    cases=$((cases + 1))
    for compute in f32 f32_chunks f64; do
        out=$tmp/golden/$compute/$name
        expect 0 "$name $compute" run "$folder" "$out" --compute $compute
        for array in o final_state intermediate_states; do
            [ -e "$folder/$array.npy" ] || continue
            dtype=$(sed -n "s/^dtype_$array //p" "$folder/case.txt")
            if [ $array$compute = of64 ]; then
                expect 0 "$name $compute $array" compare "$folder/o_f64.npy" "$out/o.npy" --atol 1e-13
                says "dtypes f64 f64"
            else
                # shellcheck disable=SC2046 # several words are meant
                expect 0 "$name $compute $array" compare "$folder/$array.npy" "$out/$array.npy" $(tolerances "$dtype")
                says "dtypes $dtype $dtype"
            fi
        done
    done
done
label="golden cases"
[ $cases -ge 71 ] || failed "only $cases in $golden"

# All instruction sets write the same file, or say that they are not there.
same=0
for isa in auto plain avx2 avx512 neon; do
    rm -rf "$tmp/out"
    label="--isa $isa"
    if "$oracle" run "$golden/long_300" "$tmp/out" --isa $isa >"$tmp/stdout" 2>"$tmp/stderr"; then
        cmp "$tmp/out/o.npy" "$tmp/golden/f32/long_300/o.npy" || failed "other bits"
        same=$((same + 1))
        checks=$((checks + 1))
    else
        expect 2 "$label" run "$golden/long_300" "$tmp/out" --isa $isa
        says GDN_ERROR_ISA
    fi
done
[ $same -ge 2 ] || failed "auto and plain are everywhere"

# ---- cases that a user writes --------------------------------------------------------------------------------

fresh
expect 0 "a case without expected arrays" run "$tmp/case" "$tmp/out/of/folders"
cmp "$tmp/out/of/folders/o.npy" "$tmp/golden/f32/seed_initial_state/o.npy" || failed "other bits"

mkdir "$tmp/tiny"
printf 'B 1\r\n\r\n  T\t1  \nH 1\nHV 1\nK 1\nV 1' >"$tmp/tiny/case.txt"
for array in a A_log dt_bias q k v; do
    case $array in
    a) shape='(1, 1, 1)' ;;
    A_log | dt_bias) shape='(1,)' ;;
    *) shape='(1,1,1,1,)' ;;
    esac
    { npy "{\"shape\": $shape, \"descr\": \"<f4\", \"fortran_order\": False}"; zeros 4; } >"$tmp/tiny/$array.npy"
done
expect 0 "sizes only: every option has a default" run "$tmp/tiny" "$tmp/tiny_out"
expect 0 "... o is zero" compare "$tmp/tiny_out/o.npy" "$tmp/tiny/q.npy"
label="no state asked for"
[ ! -e "$tmp/tiny_out/final_state.npy" ] || failed "a state was written"

fresh
{ npy "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"; printf '\002\000\000\000\000\000\000\000'; } \
    >"$tmp/case/initial_state_indices.npy"
key dtype_initial_state_indices i32
expect 0 "indices of 32 bits" run "$tmp/case" "$tmp/out"

for version in 2 3; do
    fresh
    {
        printf '\223NUMPY%b\000\166\000\000\000' "\\000$version"
        dd if="$golden/seed_initial_state/q.npy" bs=1 skip=10 2>/dev/null
    } >"$tmp/case/q.npy"
    expect 0 "version $version of the format" run "$tmp/case" "$tmp/out"
    cmp "$tmp/out/o.npy" "$tmp/golden/f32/seed_initial_state/o.npy" || failed "other bits"
done

# beta = sigmoid(0) either way: a b for each column does what a b for each head does.
fresh
{ npy "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 2), }"; zeros 64; } >"$tmp/case/b.npy"
expect 0 "b for each head" run "$tmp/case" "$tmp/per_head"
{ npy "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 2, 8), }"; zeros 512; } >"$tmp/case/b.npy"
expect 0 "b for each column" run "$tmp/case" "$tmp/per_column"
cmp "$tmp/per_head/o.npy" "$tmp/per_column/o.npy" || failed "other bits"

# ones_and_zero FILE DTYPE: the mask of 2 rows of 4 tokens whose last token does not count.
ones_and_zero() {
    { npy "{'descr': '$2', 'fortran_order': False, 'shape': (2, 4), }"; printf '\001\001\001\001\001\001\001\000'; } \
        >"$1"
}
for dtype in '|u1' '|b1'; do
    fresh
    ones_and_zero "$tmp/case/token_mask.npy" "$dtype"
    key dtype_token_mask u8
    expect 0 "a mask of $dtype" run "$tmp/case" "$tmp/out"
    expect 1 "... is not ignored" compare "$tmp/out/o.npy" "$tmp/golden/f32/seed_initial_state/o.npy"
    says "past_tolerance 16 of 128" # 2 heads of 8 columns
done

# Any key, and its value.
fresh
for line in "l2norm_form max_norm_eps" "l2norm_eps 0" "softplus_threshold 0" "gate_input raw" "beta_input given" \
    "allow_neg_eigval 1" "read_before_decay 1" "step_interval 3" "round_qk 1" "round_q_scaled 1" "round_beta 1" \
    "round_state 1" "head_map tiled" "padding zero" "null_slot 2" "lower_bound -0.5" "scale 0.25" \
    "source some one" "other_rel_err_o 1e-7"; do
    key "${line%% *}" "${line#* }"
done
expect 0 "all keys" run "$tmp/case" "$tmp/out" --compute f64
expect 1 "... which are not ignored" compare "$tmp/out/o.npy" "$tmp/golden/f64/seed_initial_state/o.npy"

# A dtype that only the float64 computation takes.
fresh
{ npy "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4, 2, 8), }"; zeros 1024; } >"$tmp/case/v.npy"
key dtype_v f64
refused "float64 in the float32 computation"
says GDN_ERROR_ENUM
expect 0 "float64 in the float64 computation" run "$tmp/case" "$tmp/out" --compute f64

# ---- damaged arrays ------------------------------------------------------------------------------------------

q=$tmp/case/q.npy
original=$golden/seed_initial_state/q.npy

# damaged LABEL TEXT: q.npy, written just now, is refused with that text.
damaged() {
    refused "$1"
    says "q.npy"
    says "$2"
}

# header LABEL TEXT DICT: the same for a file with this header and the right amount of data.
header() {
    fresh
    { npy "$3"; zeros 512; } >"$q"
    damaged "$1" "$2"
}

fresh
: >"$q"
damaged "an empty file" "not an .npy file"
fresh
dd if="$original" bs=9 count=1 2>/dev/null >"$q"
damaged "half of the header's length" "truncated"
fresh
dd if="$original" bs=50 count=1 2>/dev/null >"$q"
damaged "half of the header" "truncated"
fresh
dd if="$original" bs=639 count=1 2>/dev/null >"$q"
damaged "a missing byte" "truncated"
fresh
zeros 1 >>"$q"
damaged "a byte too many" "trailing"
fresh
{ printf '\223NUMPI'; dd if="$original" bs=1 skip=6 2>/dev/null; } >"$q"
damaged "wrong magic" "not an .npy file"
fresh
{ printf '\223NUMPY\004\000'; dd if="$original" bs=1 skip=8 2>/dev/null; } >"$q"
damaged "an unknown version" "version 4.0"
fresh
{ printf '\223NUMPY\002\000\377\377\377\377'; zeros 4096; } >"$q"
damaged "a header longer than the file" "truncated"
fresh
{ printf '\223NUMPY\002\000\000\000\002\000'; zeros 200000; } >"$q"
damaged "a header too long" "too long"
fresh
rm "$q"
mkdir "$q"
refused "a folder for a file"
fresh
rm "$q"
damaged "a missing file" "No such file"
fresh
rm "$tmp/case/b.npy"
refused "a missing file whose dtype is declared"
says "b.npy"

good="'fortran_order': False, 'shape': (2, 4, 2, 8)"
header "Fortran order" "Fortran order" "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 4, 2, 8), }"
header "fortran_order 1" "fortran_order" "{'descr': '<f4', 'fortran_order': 1, 'shape': (2, 4, 2, 8), }"
header "big-endian" "'>f4'" "{'descr': '>f4', $good}"
header "an unknown dtype" "'<c8'" "{'descr': '<c8', $good}"
header "an overlong dtype" "dtype" "{'descr': '<f4<f4<f4<f4<f4<f4<f4', $good}"
header "a structured dtype" "dtype" "{'descr': [('x', '<f4')], $good}"
header "no dict" "dict" "('descr', '<f4')"
header "an unclosed dict" "malformed" "{'descr': '<f4', $good"
header "a missing comma" "malformed" "{'descr': '<f4' $good}"
header "text after the dict" "malformed" "{'descr': '<f4', $good} x"
header "a missing key of the header" "'descr'" "{$good}"
header "a repeated key of the header" "'descr'" "{'descr': '<f4', 'descr': '<f4', $good}"
header "an unknown key of the header" "'deskr'" "{'deskr': '<f4', $good}"
header "an unclosed string" "malformed" "{'descr"
header "another shape" "(2, 4, 8, 2)" "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 8, 2)}"
header "another number of axes" "(128,)" "{'descr': '<f4', 'fortran_order': False, 'shape': (128,)}"
header "an axis too few" "(16, 2, 4)" "{'descr': '<f4', 'fortran_order': False, 'shape': (16, 2, 4)}"
header "a shape that is a number" "tuple" "{'descr': '<f4', 'fortran_order': False, 'shape': 128}"
header "a shape in parentheses" "tuple" "{'descr': '<f4', 'fortran_order': False, 'shape': (128)}"
header "a shape without commas" "tuple" "{'descr': '<f4', 'fortran_order': False, 'shape': (2 64)}"
header "a negative size" "tuple" "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -4, 2, 8)}"
header "too many axes" "axes" "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,128)}"
header "a size that overflows" "overflows" "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}"
header "a shape that overflows" "overflows" \
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"
header "more than the file holds" "truncated" "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"
header "numbers without an order" "'|f4'" "{'descr': '|f4', $good}"
header "integers for numbers" "i4" "{'descr': '<i4', $good}"

fresh
{ npy "{'descr': '<f2', $good}"; zeros 256; } >"$q"
damaged "another dtype than declared" "dtype_q f32"
fresh
{ npy "{'descr': '<u2', $good}"; zeros 256; } >"$q"
key dtype_q
damaged "16 bits without a declaration" "dtype_q absent"
fresh
{ npy "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}"; zeros 16; } >"$tmp/case/initial_state_indices.npy"
key dtype_initial_state_indices
refused "numbers for integers"
says "initial_state_indices.npy: holds f8"

fresh
{ npy "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 4)}"; zeros 32; } >"$tmp/case/token_mask.npy"
refused "a mask of larger integers"
says "token_mask.npy: holds i4"
fresh
ones_and_zero "$tmp/case/token_mask.npy" '|u1'
key dtype_token_mask i32
refused "another mask than declared"
says "dtype_token_mask i32"
fresh
{ npy "{'descr': '|b1', 'fortran_order': False, 'shape': (2, 5)}"; zeros 10; } >"$tmp/case/token_mask.npy"
refused "a mask of another shape"
says "shape (2, 5) is not the [B,T]"
fresh
{ npy "{'descr': '|u1', $good}"; zeros 128; } >"$tmp/case/q.npy"
damaged "bytes for numbers" "holds u1"
for array in k_read erase gv; do
    fresh
    { npy "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 2, 7)}"; zeros 448; } >"$tmp/case/$array.npy"
    refused "$array of another shape"
    says "$array.npy: shape (2, 4, 2, 7) is not the [B,T,H"
    rm "$tmp/case/$array.npy"
    key dtype_$array f32
    refused "$array, declared and missing"
    says "$array.npy: No such file"
done

# An input under another name is not an absent one.
for name in beta B b1 k_reads final_states; do
    fresh
    key dtype_b
    mv "$tmp/case/b.npy" "$tmp/case/$name.npy"
    refused "b.npy as $name.npy"
    says "/$name.npy: a case has no such array"
done
fresh
: >"$tmp/case/$(printf '%0100d' 0).npy"
refused "a long name"
says "a case has no such array"
fresh
for name in o o_f64 final_state intermediate_states; do : >"$tmp/case/$name.npy"; done
: >"$tmp/case/notes"
: >"$tmp/case/npy"
expect 0 "results and what is no array" run "$tmp/case" "$tmp/out"

# ---- a bad case.txt ------------------------------------------------------------------------------------------

# line LABEL TEXT KEY [VALUE]: refused with this text once the key has this value, or none.
line() {
    fresh
    key "$3" ${4+"$4"}
    refused "$1"
    says "$2"
}

for size in B T H HV K V; do
    line "a missing size" "'$size' is missing" $size
done
line "a number with a tail" "T is '4x'" T 4x
line "a size that is no integer" "T is '4.0'" T 4.0
line "a size below zero" "T is '-4'" T -4
line "a size that overflows" "T is '9223372036854775808'" T 9223372036854775808
line "the largest size" "T is '9223372036854775807'" T 9223372036854775807
line "another size" "[B,T,H,K]" K 9
line "no such number" "scale is 'half'" scale half
line "a scale of 0" "scale is '0'" scale 0
line "a softplus_beta of 0" "softplus_beta is '0'" softplus_beta 0
line "a flag" "is_kda is 'yes'" is_kda yes
for flag in read_before_decay round_qk round_q_scaled round_beta round_state; do
    line "a flag" "$flag is '2'" $flag 2
done
line "steps of no token" "step_interval is '0' and not positive" step_interval 0
line "steps of fewer" "step_interval is '-1' and not a size" step_interval -1
line "a layout" "state_layout is 'kvk'" state_layout kvk
line "a missing layout" "'state_layout' is missing" state_layout
line "a dtype" "dtype_q is 'float32'" dtype_q float32
line "another dtype" "q.npy: holds f4" dtype_q f64
line "the dtype of an output" "dtype_o is 'i64'" dtype_o i64
line "the dtype of some array" "dtype_some is 'x'" dtype_some x
line "an error" "big_rel_err_o is 'x'" big_rel_err_o x
line "an unknown key" "'use_l2norm' is unknown" use_l2norm 1
line "a cache as large as no memory" "too large" intermediate_rows 9000000000000000000
line "a pool that is not there" "shape (3, 2, 8, 8) is not the [slots,HV,K,V]" num_states 4

fresh
key intermediate_rows 1000000000
key intermediate_steps 1000000
refused "a cache that no case needs"
says "too large"
fresh
echo "T 4" >>"$tmp/case/case.txt"
refused "a repeated key"
says "'T' again"
fresh
echo "padding" >>"$tmp/case/case.txt"
refused "a key without a value"
says "'padding' has no value"
fresh
printf 'padding \033[2J\001\n' >>"$tmp/case/case.txt"
refused "control characters"
says "padding is '?[2J?'"
fresh
printf 'padding zero\000\n' >>"$tmp/case/case.txt"
refused "a byte 0"
says "not a text"
for mark in '\357\273\277' '\377\376' '\376\377'; do
    fresh
    { printf '%b' "$mark"; cat "$golden/seed_initial_state/case.txt"; } >"$tmp/case/case.txt"
    refused "a byte-order mark"
    says "case.txt: begins with a byte-order mark"
done
fresh
printf '\377' >"$tmp/case/case.txt"
refused "half a byte-order mark"
says "has no value"
fresh
i=0
while [ $i -lt 130 ]; do
    echo "dtype_x$i f32"
    i=$((i + 1))
done >>"$tmp/case/case.txt"
refused "too many keys"
says "too many keys"
fresh
zeros 70000 >"$tmp/case/case.txt"
refused "a case.txt that is too long"
fresh
rm "$tmp/case/case.txt"
refused "no case.txt"
says "case.txt: No such file"
rm -rf "$tmp/case"
refused "no case"

# ---- calls that the operator refuses -------------------------------------------------------------------------

line "a negative scale" "scale: " scale -1
says GDN_ERROR_VALUE
line "a lower bound above 0" "lower_bound: " lower_bound 1
fresh
rm "$tmp/case/a.npy"
key dtype_a
refused "A_log without a"
says "a: "
says GDN_ERROR_NULL
fresh
for key in initial_state initial_state_indices; do
    rm "$tmp/case/$key.npy"
    key dtype_$key
done
key num_states
key round_state 1
refused "states rounded to the dtype of no pool"
says "rounding: "
says GDN_ERROR_COMBINATION
fresh
cp "$tmp/case/v.npy" "$tmp/case/gv.npy"
key read_before_decay 1
refused "a read before two decays"
says "read_before_decay: "
line "N against the arrays" "shape (2,) is not the [N]" N 3
fresh
rm "$tmp/case/initial_state_indices.npy"
key dtype_initial_state_indices
key N 3
refused "N against B"
says "num_seqs: "
fresh
{ npy "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"; printf '\002\000\000\000\003\000\000\000'; } \
    >"$tmp/case/initial_state_indices.npy"
key dtype_initial_state_indices
refused "a slot that the pool lacks"
says "initial_state_indices[1]: "
{ npy "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }"; printf '\002\000\000\000\002\000\000\000'; } \
    >"$tmp/case/initial_state_indices.npy"
refused "one slot for two"
says GDN_ERROR_CONFLICT

# ---- the command line ----------------------------------------------------------------------------------------

fresh
rm -f "$tmp/out"
expect 2 "no arguments"
says "usage"
expect 2 "an unknown command" walk "$tmp/case" "$tmp/out"
expect 2 "no folders" run
expect 2 "one folder" run "$tmp/case"
expect 2 "three folders" run "$tmp/case" "$tmp/out" "$tmp/out"
expect 2 "an unknown option" run "$tmp/case" "$tmp/out" --fast
expect 2 "an option of compare" run "$tmp/case" "$tmp/out" --atol 1
expect 2 "an option without a value" run "$tmp/case" "$tmp/out" --compute
expect 2 "an unknown computation" run "$tmp/case" "$tmp/out" --compute f16
expect 2 "an unknown instruction set" run "$tmp/case" "$tmp/out" --isa mmx
says "plain"
expect 2 "a file in the way" run "$tmp/case" "$tmp/case/q.npy"
expect 2 "a file above" run "$tmp/case" "$tmp/case/q.npy/out"
expect 0 "options first" run --isa plain "$tmp/case" "$tmp/out"
rm -rf "$tmp/out"
expect 0 "help" --help
says "Exit status 2"
expect 0 "version" --version
says "gdn_oracle "

# ---- compare -------------------------------------------------------------------------------------------------

# vector FILE DTYPE COUNT BYTES
vector() {
    # shellcheck disable=SC2059 # the bytes are written as a format
    { npy "{'descr': '$2', 'fortran_order': False, 'shape': ($3,), }"; printf "$4"; } >"$tmp/$1.npy"
}
e=$tmp/e.npy
x=$tmp/x.npy

# 1, 2 and 1, 2 + 2^-22
vector e '<f4' 2 '\000\000\200\077\000\000\000\100'
vector x '<f4' 2 '\000\000\200\077\001\000\000\100'
expect 0 "the same" compare "$e" "$e"
says "nmse 0"
expect 1 "the last bit" compare "$e" "$x"
says "max_abs_diff 2.38418579e-07"
says "max_rel_diff 1.1920929e-07"
says "max_ulp_diff 1 f32"
says "nmse 1.13686838e-14"
says "worst (1,) expected 2 actual 2.0000002384185791"
says "past_tolerance 1 of 2"
says "FAIL"
expect 0 "within atol" compare "$e" "$x" --atol 2.4e-7
says "OK"
expect 1 "past atol" compare "$e" "$x" --atol 2.3e-7
expect 0 "within rtol" compare "$e" "$x" --rtol 1.2e-7
expect 1 "past rtol" compare "$e" "$x" --rtol 1.1e-7
expect 0 "both together" compare "$e" "$x" --rtol 1.1e-7 --atol 2e-8
expect 1 "in other units" compare "$e" "$x" --dtype bf16
says "max_ulp_diff 0 bf16"

# 1 and 2 in float64; 1 and 2 + 2^-6 in bfloat16
vector d '<f8' 2 '\000\000\000\000\000\000\360\077\000\000\000\000\000\000\000\100'
vector h '<u2' 2 '\200\077\001\100'
expect 0 "float64 and float32" compare "$tmp/d.npy" "$e"
says "max_ulp_diff 0 f32"
expect 1 "float64 and bfloat16" compare "$tmp/d.npy" "$tmp/h.npy" --dtype bf16
says "max_ulp_diff 1 bf16"
says "max_abs_diff 0.015625"
expect 1 "bfloat16 and float64" compare "$tmp/h.npy" "$tmp/d.npy" --dtype bf16
says "max_ulp_diff 1 bf16"
expect 1 "the same 16 bits as float16" compare "$tmp/d.npy" "$tmp/h.npy" --dtype f16
says "worst (0,) expected 1 actual 1.875"
expect 2 "16 bits of unsaid meaning" compare "$tmp/d.npy" "$tmp/h.npy"
expect 2 "16 bits of float32" compare "$tmp/d.npy" "$tmp/h.npy" --dtype f32

# NaN, inf, 0 and -NaN, inf, -0; then NaN, -inf, 0
vector e '<f4' 3 '\000\000\300\177\000\000\200\177\000\000\000\000'
vector x '<f4' 3 '\001\000\300\377\000\000\200\177\000\000\000\200'
expect 0 "NaN for NaN, infinity for infinity, 0 for -0" compare "$e" "$x"
vector x '<f4' 3 '\000\000\300\177\000\000\200\377\000\000\000\000'
expect 1 "the other infinity" compare "$e" "$x" --rtol 1
says "max_abs_diff inf"
says "worst (1,) expected inf actual -inf"
vector x '<f4' 3 '\000\000\300\177\000\000\200\177\000\000\300\177'
expect 1 "NaN for a number" compare "$e" "$x" --atol 1e300
says "worst (2,) expected 0 actual nan"
says "past_tolerance 1 of 3"

# The worst element is one past tolerance, even where another is further off: 1, 1024 and 2, 1028
vector e '<f4' 2 '\000\000\200\077\000\000\200\104'
vector x '<f4' 2 '\000\000\000\100\000\200\200\104'
expect 1 "the worst element" compare "$e" "$x" --rtol 0.5
says "worst (0,) expected 1 actual 2"
says "max_abs_diff 4"

vector empty '<f4' 0 ''
expect 0 "nothing" compare "$tmp/empty.npy" "$tmp/empty.npy"
vector i '<i8' 1 '\000\000\000\000\000\000\000\000'
expect 2 "other shapes" compare "$golden/seed_basic/q.npy" "$golden/seed_larger/q.npy"
says "(2, 4, 2, 8) and (4, 8, 4, 16)"
expect 2 "other numbers of axes" compare "$e" "$golden/seed_larger/q.npy"
expect 2 "integers" compare "$tmp/i.npy" "$tmp/i.npy"
expect 2 "a missing file" compare "$e" "$tmp/none.npy"
expect 2 "a text" compare "$e" "$0"
expect 2 "one file" compare "$e"
expect 2 "an unknown dtype" compare "$e" "$e" --dtype f8
for bad in -1 nan inf 1x ''; do
    expect 2 "a tolerance of '$bad'" compare "$e" "$e" --atol "$bad"
    expect 2 "a tolerance of '$bad'" compare "$e" "$e" --rtol "$bad"
done
expect 2 "an option of run" compare "$e" "$e" --compute f64

echo "$checks checks passed"
