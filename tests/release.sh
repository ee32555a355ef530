#!/bin/sh
# Writes the header as it is given away: its version and commit in the second line, its SHA-256 checksum beside it.
#
#   tests/release.sh FOLDER        FOLDER/gdn_varlen.h and FOLDER/gdn_varlen.h.sha256
#
# In the folder, "sha256sum -c gdn_varlen.h.sha256" verifies the header.
set -eu
. "$(dirname -- "$0")/usage.sh"
usage_of 1 1 "$@"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
version=$(awk '/^#define GDN_VERSION_(MAJOR|MINOR|PATCH) / { v = v dot $3; dot = "." } END { print v }' \
    "$root/gdn_varlen.h")
commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null) || commit=
if [ -n "$commit" ] && ! git -C "$root" diff --quiet HEAD -- gdn_varlen.h; then
    commit="$commit, changed"
fi

mkdir -p "$1"
sed "2s/\$/, version $version${commit:+ ($commit)}/" "$root/gdn_varlen.h" >"$1/gdn_varlen.h"
cd "$1"
sha256sum gdn_varlen.h >gdn_varlen.h.sha256
sed -n 2p gdn_varlen.h
cat gdn_varlen.h.sha256
