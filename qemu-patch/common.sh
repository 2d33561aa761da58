# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
#
# What build, test and bench have in common: where things are, and how to say that something went wrong.
# Sourced, not run. Knows nothing of QEMU's insides.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")

QEMU_VERSION=${QEMU_VERSION:-10.2.2}
cache=${MEMSLOTS_QEMU_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memslots-qemu}

# A tree of the caller's has a place of its own, so that it never meets the fetched one.
work=$cache/${QEMU_SRC:+given-}$QEMU_VERSION
src=$work/src
build=$work/build
bin=$work/bin
prefix=${MEMSLOTS_PREFIX:-$cache/prefix}

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# need_packages NAME...: every one of these Debian packages is there afterwards.
need_packages() {
    local name missing=()

    command -v dpkg-query >/dev/null || { say "not a Debian system: taking for granted that there is: $*"; return; }
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^.i' || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get -q update >/dev/null || die "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "could not install: ${missing[*]}"
}
