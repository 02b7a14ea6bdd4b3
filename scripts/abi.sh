#!/usr/bin/env bash
# Records the ABI of libkvclient.so in ffi/abi/: the exported names, the functions and types as abidw reports them, and
# the constants that are compiled into programs. The script generates these files from include/kvclient.h; with --check
# it only compares them with the header.
#
# ffi/abi/1/ is the record of version 1 of the interface (libkvclient.so.1). It never changes as long as the soname does
# not. With --check, the script also compares the header with it; then only additions are allowed.
#
# The source is the header and not the library, because the header is all that a C program can use: Rust types behind
# pointers are not part of the ABI. Tests check that header and library agree. So the script only builds a library of
# empty functions.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly kept=ffi/abi first=ffi/abi/1
now=$(mktemp -d)
trap 'rm -rf "$now"' EXIT

# Each prototype after `extern "C" {` gets a body.
sed '/^extern "C"/,$s/);$/) { __builtin_trap(); }/' include/kvclient.h >"$now/kvclient.c"
gcc -std=c99 -w -g "-ffile-prefix-map=$now=." -shared -fPIC -o "$now/libkvclient.so" "$now/kvclient.c"
nm -D --defined-only "$now/libkvclient.so" | awk '{print $3}' | LC_ALL=C sort >"$now/exports.txt"
sed -n 's/^#define \(KVC_[A-Z_]* .*\)/\1/p' include/kvclient.h >"$now/constants.txt"
abidw --no-corpus-path --no-comp-dir-path --no-show-locs --out-file "$now/kvclient.xml" "$now/libkvclient.so"

case ${1-} in
--check)
    # Any difference is an error, even an addition, because the next change is compared with the recorded files.
    if ! diff -u "$kept/exports.txt" "$now/exports.txt" || ! diff -u "$kept/constants.txt" "$now/constants.txt" ||
        ! abidiff "$kept/kvclient.xml" "$now/kvclient.xml"; then
        printf '%s: include/kvclient.h differs from the ABI recorded in %s; run "make abi" and commit the result. ' "$0" "$kept" >&2
        printf 'If the difference is not only an addition, also change the soname (ffi/build.rs)\n' >&2
        exit 1
    fi
    # The version is the only constant that may change.
    missing=$(LC_ALL=C comm -23 <(grep -v '^KVC_VERSION' "$first/constants.txt" | LC_ALL=C sort) \
        <(LC_ALL=C sort "$now/constants.txt"))
    if [[ $missing ]] || ! abidiff --no-added-syms --suppressions "$first/additions.supp" \
        "$first/kvclient.xml" "$now/kvclient.xml"; then
        printf '%s: include/kvclient.h breaks the interface of version 1 (%s), on which linked programs rely%s. ' \
            "$0" "$first" "${missing:+; missing or changed constants: ${missing//$'\n'/, }}" >&2
        printf 'Add fields only at the end of structs that begin with "size", or change the soname (ffi/build.rs)\n' >&2
        exit 1
    fi
    ;;
'') mkdir -p "$kept" && cp -- "$now/exports.txt" "$now/constants.txt" "$now/kvclient.xml" "$kept/" ;;
*)
    printf 'usage: %s [--check]\n' "$0" >&2
    exit 2
    ;;
esac
