#!/usr/bin/env bash
# Builds the executables and the C library in release mode and leaves them in bin/.
#
# cargo says itself where it put them, so that a target directory or a target of the user's own
# (CARGO_TARGET_DIR, ~/.cargo/config.toml) works too. By package (-p), not --workspace: building the
# workspace would unite the features that tests switch on with those of what ships.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# `make run` hands its standard input to the client: nothing before may read from it.
build() { # <package> [<option of cargo>]
    cargo build --release --locked -p "$@" --message-format=json-render-diagnostics </dev/null
}

built=$(build ftkv --bins | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
built+=$'\n'$(build kvclient | grep -o '[^"]*/libkvclient\.\(so\|a\)' | sort -u)
mapfile -t files <<<"$built"

mkdir -p bin
# A link, not a copy over the old file: that fails while a cluster runs it ("text file busy").
ln -f -t bin -- "${files[@]}" 2>/dev/null ||
    cp --remove-destination -t bin -- "${files[@]}"
