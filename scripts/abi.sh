#!/usr/bin/env bash
# What programs that are linked with libkvclient.so rely on, kept in ffi/abi/: the list of exports,
# functions and types as abidw sees them, and the numbers that are compiled into programs. Written anew from include/kvclient.h, or with --check
# compared with it.
#
# From the header, not the library: it says all that a C program can know (a Rust type behind a
# pointer is none of that), and tests hold the two together. So nothing is built but a library of
# empty functions.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly kept=ffi/abi
now=$(mktemp -d)
trap 'rm -rf "$now"' EXIT

# Each prototype behind `extern "C" {` gets a body.
sed '/^extern "C"/,$s/);$/) { __builtin_trap(); }/' include/kvclient.h >"$now/kvclient.c"
gcc -std=c99 -w -g "-ffile-prefix-map=$now=." -shared -fPIC -o "$now/libkvclient.so" "$now/kvclient.c"
nm -D --defined-only "$now/libkvclient.so" | awk '{print $3}' | LC_ALL=C sort >"$now/exports.txt"
sed -n 's/^#define \(KVC_[A-Z_]* .*\)/\1/p' include/kvclient.h >"$now/constants.txt"
abidw --no-corpus-path --no-comp-dir-path --no-show-locs --out-file "$now/kvclient.xml" "$now/libkvclient.so"

case ${1-} in
--check)
    # Any difference counts, an addition too: the kept files are what the next one is compared with.
    if ! diff -u "$kept/exports.txt" "$now/exports.txt" || ! diff -u "$kept/constants.txt" "$now/constants.txt" ||
        ! abidiff "$kept/kvclient.xml" "$now/kvclient.xml"; then
        printf '%s: include/kvclient.h differs from the interface in %s. If nothing that was there before has changed, ' "$0" "$kept" >&2
        printf 'run "make abi" and commit the result; otherwise also change the soname (ffi/build.rs)\n' >&2
        exit 1
    fi
    ;;
'') mkdir -p "$kept" && cp -- "$now/exports.txt" "$now/constants.txt" "$now/kvclient.xml" "$kept/" ;;
*)
    printf 'usage: %s [--check]\n' "$0" >&2
    exit 2
    ;;
esac
