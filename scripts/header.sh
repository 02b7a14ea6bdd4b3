#!/usr/bin/env bash
# Copies the generated C header to include/kvclient.h. With --check, only compares the two, and fails if they differ.
# Every build of ffi/ generates the header with cbindgen, in cargo's build directory, because a build must not change
# the source tree.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly committed=include/kvclient.h

out_dir=$(cargo build --locked -p kvclient --message-format=json-render-diagnostics </dev/null |
    sed -n '/"reason":"build-script-executed"/{/ffi#kvclient@/s/.*"out_dir":"\([^"]*\)".*/\1/p}')
generated=$out_dir/kvclient.h
[[ $out_dir && -s $generated ]] || {
    printf '%s: cannot find kvclient.h in the OUT_DIR of ffi/ (%s); check the build of ffi/\n' "$0" "$out_dir" >&2
    exit 1
}

case ${1-} in
--check)
    diff -u --label "$committed" --label "generated from ffi/" "$committed" "$generated" || {
        printf '%s: %s differs from the header generated from ffi/; run "make header" and commit it\n' "$0" "$committed" >&2
        exit 1
    }
    ;;
'') install -m 644 -- "$generated" "$committed" ;;
*)
    printf 'usage: %s [--check]\n' "$0" >&2
    exit 2
    ;;
esac
