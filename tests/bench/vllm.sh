#!/bin/sh
# Side by side with vLLM's CPU operator: fetches it and torch, builds it, runs both in one process, prints a table.
#
#   tests/bench/vllm.sh [--threads N] [--tokens N] [--rounds N] [--seconds S] [--case PATTERN]
#
# The operator is a file of vLLM's source package, which pip fetches from PyPI; it is an extension of torch and wants
# AVX-512 with bfloat16, and for its full speed AMX. torch goes with some gigabytes of libraries into an environment
# under BUILD_DIR (build-vllm/); PYTHON names a python that has torch, numpy and ninja, and none is made then. VLLM and
# TORCH name other versions, VLLM_DIR another copy of vLLM's source. The lines stay there in vllm.txt; vllm.py says what
# is measured and how. Exit status 2: it cannot run here, as the last line on standard error says.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
build=${BUILD_DIR:-$root/build-vllm}
vllm=${VLLM:-0.33.0}
torch=${TORCH:-2.14.0}
source=${VLLM_DIR:-$build/vllm-$vllm}

fail() {
    echo "tests/bench/vllm.sh: $1" >&2
    exit 2
}

# need LOG MESSAGE COMMAND...: or the last lines of what it printed, and the message
need() {
    log=$build/$1 message=$2
    shift 2
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2 && fail "$message (all of it: $log)"; }
}

case ${1:-} in
--help | -h)
    sed -n '/^#   tests/,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

flags=$(sed -n 's/^flags[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)
for flag in avx512f avx512bw avx512dq avx512vl avx512_bf16; do
    case " $flags " in *" $flag "*) ;; *) fail "vLLM's operator needs a CPU with $flag, which this one lacks" ;; esac
done
case " $flags " in *" amx_bf16 "*) ;; *) echo "no AMX here: vLLM's products run without it" >&2 ;; esac
command -v g++ >/dev/null || fail "g++ is missing"

mkdir -p "$build"
python=${PYTHON:-$build/venv/bin/python}
if [ -z "${PYTHON:-}" ] && ! "$python" -c 'import torch, numpy, setuptools_rust' 2>/dev/null; then
    [ "$(df -Pk "$build" | awk 'NR == 2 { print int($4 / 1048576) }')" -ge 8 ] || fail "torch needs 8 GB in $build"
    echo "fetching torch $torch, some minutes" >&2
    need venv.log "python3 cannot make an environment" python3 -m venv "$build/venv"
    need pip.log "pip cannot install torch $torch" "$build/venv/bin/pip" install "torch==$torch" numpy ninja \
        packaging setuptools setuptools_scm setuptools_rust wheel jinja2
fi
"$python" -c 'import torch, numpy' 2>/dev/null || fail "$python has no torch or no numpy"
PATH=$(CDPATH='' cd -- "$(dirname -- "$(command -v "$python")")" && pwd):$PATH # ninja lies there
export PATH

if [ ! -f "$source/csrc/cpu/sgl-kernels/fla.cpp" ]; then
    [ -z "${VLLM_DIR:-}" ] || fail "there is no $source/csrc/cpu/sgl-kernels/fla.cpp"
    echo "fetching vllm $vllm" >&2
    # pip asks the package for its version, which it would change to name the device.
    need vllm.log "pip cannot fetch vllm $vllm" env VLLM_TARGET_DEVICE=cpu "VLLM_VERSION_OVERRIDE=$vllm" "$python" -m pip \
        download --no-deps --no-binary :all: --no-build-isolation --dest "$build" "vllm==$vllm"
    tar -xzf "$build/vllm-$vllm.tar.gz" -C "$build" "vllm-$vllm/csrc/cpu"
fi

mkdir -p "$build/extension"
"$python" "$root/tests/bench/vllm.py" --source "$source/csrc/cpu/sgl-kernels" --build "$build/extension" "$@" \
    >"$build/vllm.txt" 2>"$build/vllm.log" ||
    { tail -n 30 "$build/vllm.log" >&2 && fail "vLLM's operator cannot be built or run (all of it: $build/vllm.log)"; }
awk '
    BEGIN {
        printf "%-17s %-8s %7s %9s %9s %9s %9s %6s %6s %9s %9s %9s %9s\n", "us a token", "compute", "threads", "ours",
            "median", "vLLM", "median", "ratio", "median", "o", "state", "vLLM o", "state"
    }
    {
        for (i = 1; i <= NF; i++) {
            split($i, pair, "=")
            value[pair[1]] = pair[2]
        }
        printf "%-17s %-8s %7s %9s %9s %9s %9s %6s %6s %9s %9s %9s %9s\n", value["case"], value["compute"],
            value["threads"], value["ours_us_per_token"], value["ours_us_per_token_median"],
            value["theirs_us_per_token"], value["theirs_us_per_token_median"], value["ratio"], value["ratio_median"],
            value["ours_o"], value["ours_state"], value["theirs_o"], value["theirs_state"]
    }' "$build/vllm.txt"
