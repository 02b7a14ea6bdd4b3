#!/usr/bin/env bash
# include/kvclient.h is written by cbindgen whenever ffi/ is built, into cargo's build directory; a
# build must not change the source tree. This script copies it into the tree, or with --check fails
# where the committed header is not the generated one.
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
