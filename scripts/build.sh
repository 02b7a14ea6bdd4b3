#!/usr/bin/env bash
# Builds the three executables in release mode and leaves them in bin/.
#
# cargo says itself where it put them, so that a target directory or a target of the user's own
# (CARGO_TARGET_DIR, ~/.cargo/config.toml) works too. By package (-p), not --workspace: building the
# workspace would unite the features that tests switch on with those of the shipped server.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# `make run` hands its standard input to the client: nothing before may read from it.
built=$(cargo build --release --locked -p ftkv --bins \
    --message-format=json-render-diagnostics </dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
mapfile -t executables <<<"$built"

mkdir -p bin
# A link, not a copy over the old file: that fails while a cluster runs it ("text file busy").
ln -f -t bin -- "${executables[@]}" 2>/dev/null ||
    cp --remove-destination -t bin -- "${executables[@]}"
