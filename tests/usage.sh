# Sourced by the scripts of this folder and those below: the comment at the head of a script is its usage. Answers --help,
# and refuses the wrong number of arguments.
#
#   . ".../usage.sh"; usage_of LEAST MOST "$@"       MOST: a number, "any", or "options": any, and what begins with -
#
# shellcheck shell=sh
usage() { sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"; }

# wrong_usage [REASON]
wrong_usage() {
    [ $# = 0 ] || printf '%s: %s\n\n' "$0" "$1" >&2
    usage >&2
    exit 2
}

usage_of() {
    least=$1 most=$2
    shift 2
    case ${1-} in
    -h | --help)
        usage
        exit
        ;;
    esac
    [ $# -ge "$least" ] || wrong_usage "too few arguments"
    case $most in
    options) return ;;
    any) ;;
    *) [ $# -le "$most" ] || wrong_usage "too many arguments" ;;
    esac
    for argument; do
        case $argument in -?*) wrong_usage "no option '$argument'" ;; esac
    done
}
