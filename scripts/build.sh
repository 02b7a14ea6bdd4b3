#!/usr/bin/env bash
# Builds the executables and the C library in release mode, and links or copies them to bin/.
#
# The paths come from cargo's messages, so a target or target directory that the user has configured
# (CARGO_TARGET_DIR, ~/.cargo/config.toml) works too. The packages are built with -p and not with --workspace, which
# would enable the features that only tests need in the shipped programs.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# `make run` passes its standard input to the client, so cargo must not read from it.
build() { # <package> [<option of cargo>]
    cargo build --release --locked -p "$@" --message-format=json-render-diagnostics </dev/null
}

built=$(build ftkv --bins | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
built+=$'\n'$(build kvclient | grep -o '[^"]*/libkvclient\.\(so\|a\)' | sort -u)
mapfile -t files <<<"$built"

mkdir -p bin
# The old files are replaced by hard links, or by copies if bin/ is on another file system. They are not overwritten,
# because that fails while a cluster executes them ("text file busy").
ln -f -t bin -- "${files[@]}" 2>/dev/null ||
    cp --remove-destination -t bin -- "${files[@]}"
