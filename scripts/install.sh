#!/usr/bin/env bash
# Installs the executables, the C library and their manual, or removes them again. From the
# environment, as `make` hands them on:
#
#   PREFIX    where it will be used (/usr/local)
#   DESTDIR   what PREFIX is below while a package is made (nothing)
#   BUILT     a directory with coord, server, client, kv-bench, libkvclient.so and libkvclient.a; without it
#             they are built, or taken from bin/, where `make` left them, if there is no cargo (as under sudo)
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly prefix=${PREFIX:-/usr/local}
readonly root=${DESTDIR-}$prefix
built=${BUILT:-bin}

# What is installed: its mode, where it comes from, its place below PREFIX.
list() {
    cat <<LIST
755 $built/coord bin/kv-coord
755 $built/server bin/kv-server
755 $built/client bin/kv
755 $built/kv-bench bin/kv-bench
755 $built/libkvclient.so lib/libkvclient.so.1
644 $built/libkvclient.a lib/libkvclient.a
644 include/kvclient.h include/kvclient.h
644 docs/man/kv-coord.1 share/man/man1/kv-coord.1
644 docs/man/kv-server.1 share/man/man1/kv-server.1
644 docs/man/kv.1 share/man/man1/kv.1
644 docs/man/kv-bench.1 share/man/man1/kv-bench.1
644 docs/man/kvclient.3 share/man/man3/kvclient.3
LIST
}
readonly link=lib/libkvclient.so pc=lib/pkgconfig/kvclient.pc

# Half an installation is worse than none: nothing is copied unless all of it is there.
check_sources() {
    local from missing=()
    while read -r _ from _; do [[ -f $from ]] || missing+=("$from"); done < <(list)
    if ((${#missing[@]})); then
        printf 'nothing was installed, run "make" first: there is no %s\n' "${missing[*]}" >&2
        exit 1
    fi
}

install_all() {
    if [[ ! ${BUILT-} ]] && command -v cargo >/dev/null; then scripts/build.sh; fi
    check_sources
    local mode from to version
    while read -r mode from to; do
        # What only a debugger reads would be nine tenths of the libraries.
        install -D -m "$mode" -- "$from" "$root/$to"
        [[ $to != *.so.1 && $to != *.a ]] || strip --strip-debug -- "$root/$to"
    done < <(list)
    ln -sf libkvclient.so.1 "$root/$link"
    version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    install -D -m 644 /dev/null "$root/$pc"
    sed "s|@PREFIX@|$prefix|; s|@VERSION@|$version|" ffi/kvclient.pc.in >"$root/$pc"
    make_known
}

# Whether the loader looks into this directory by itself.
loader_knows() {
    local known
    while read -r known; do
        [[ ! $known -ef $1 ]] || return 0
    done < <(ldconfig -NXv 2>/dev/null | sed -n 's|^\(/[^:]*\):.*|\1|p')
    return 1
}

# The loader finds what its cache lists; pkg-config finds what is in directories of its own.
make_known() {
    PATH=$PATH:/usr/sbin:/sbin # where people who are not root do not look for ldconfig
    if [[ ${DESTDIR-} ]]; then
        echo "once this is in place, \"ldconfig\" as root makes the library known"
    elif ! loader_knows "$prefix/lib"; then
        echo "the loader does not look into $prefix/lib: link programs with -Wl,-rpath,$prefix/lib"
    elif ((EUID == 0)); then
        ldconfig
    else
        echo "for programs to find the library, say as root: ldconfig"
    fi
    if [[ ! ${DESTDIR-} && :$(pkg-config --variable pc_path pkg-config 2>/dev/null): != *:"$prefix/lib/pkgconfig":* ]]; then
        echo "for pkg-config, say: export PKG_CONFIG_PATH=$prefix/lib/pkgconfig"
    fi
}

uninstall_all() {
    local to
    while read -r _ _ to; do rm -f -- "$root/$to"; done < <(list)
    rm -f -- "$root/$link" "$root/$pc"
}

case ${1-} in
install) install_all ;;
uninstall) uninstall_all ;;
*) printf 'usage: %s install|uninstall\n' "$0" >&2 && exit 2 ;;
esac
