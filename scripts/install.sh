#!/usr/bin/env bash
# Installs the executables, the C library and their manual, or removes them again. From the
# environment, as `make` hands them on:
#
#   PREFIX    where it will be used (/usr/local)
#   LIBDIR    the place of libraries below it (lib), such as lib/x86_64-linux-gnu
#   MANDIR    and that of the manual (share/man)
#   DESTDIR   what PREFIX is below while a package is made (nothing)
#   BUILT     a directory with coord, server, client, kv-bench, libkvclient.so and libkvclient.a; without it
#             they are built, or taken from bin/, where `make` left them, if there is no cargo (as under sudo)
#   STRIP     what takes out what only a debugger reads (strip); nothing is taken out if it is empty
#   LD, OBJCOPY, READELF, NM, AR   the linker and tools that write the archive (those of GNU binutils)
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly prefix=${PREFIX:-/usr/local}
readonly root=${DESTDIR-}$prefix
readonly lib=${LIBDIR:-lib} man=${MANDIR:-share/man}
built=${BUILT:-bin}

refuse() { # <words>...
    printf '%s: %s\n' "$0" "$*" >&2
    exit 2
}

# They stand in kvclient.pc and in what compilers are told, where a blank ends a word.
case $prefix in
*[[:space:]]*) refuse "PREFIX must not contain blanks: $prefix" ;;
/*) ;;
*) refuse "PREFIX must be an absolute path: $prefix" ;;
esac
for place in "$lib" "$man"; do
    case $place in
    *[[:space:]]*) refuse "LIBDIR and MANDIR must not contain blanks: $place" ;;
    /*) refuse "LIBDIR and MANDIR must be relative to PREFIX: $place" ;;
    esac
done

# What is installed: its mode, its place below PREFIX, where it comes from.
list() {
    cat <<LIST
755 bin/kv-coord $built/coord
755 bin/kv-server $built/server
755 bin/kv $built/client
755 bin/kv-bench $built/kv-bench
755 $lib/libkvclient.so.1 $built/libkvclient.so
644 $lib/libkvclient.a $built/libkvclient.a
644 include/kvclient.h include/kvclient.h
644 share/kvclient/tsan.supp ffi/tsan.supp
644 $man/man1/kv-coord.1 docs/man/kv-coord.1
644 $man/man1/kv-server.1 docs/man/kv-server.1
644 $man/man1/kv.1 docs/man/kv.1
644 $man/man1/kv-bench.1 docs/man/kv-bench.1
644 $man/man3/kvclient.3 docs/man/kvclient.3
LIST
}
# What is written at its place, and has no source of its own.
readonly link=$lib/libkvclient.so
# What is written from a template: its place, the template.
templates() {
    cat <<TEMPLATES
$lib/pkgconfig/kvclient.pc ffi/kvclient.pc.in
$lib/pkgconfig/kvclient-static.pc ffi/kvclient-static.pc.in
$lib/cmake/kvclient/kvclientConfig.cmake ffi/kvclientConfig.cmake.in
$lib/cmake/kvclient/kvclientConfigVersion.cmake ffi/kvclientConfigVersion.cmake.in
TEMPLATES
}
# The pages by which `man kvc_put` finds that of the library.
pages() { sed "s|.*|$man/man3/&.3|" ffi/abi/exports.txt; }

# Half an installation is worse than none: nothing is copied unless all of it is there.
check_sources() {
    local from missing=()
    while read -r _ _ from; do [[ -f $from ]] || missing+=("$from"); done < <(list)
    if ((${#missing[@]})); then
        printf 'cannot install; run "make" first (nothing was installed): there is no %s\n' "${missing[*]}" >&2
        exit 1
    fi
}

# cargo's archive shows every function of Rust's standard library to whoever links it: a program with two
# such archives would have each twice, and a shared library would export them. So the archive is linked to one
# object, without what no function of the interface needs, that shows the functions of the interface alone.
write_archive() { # <cargo's archive> <where to>
    local dir=$scratch function wanted=()
    while read -r function; do wanted+=("--undefined=$function"); done <ffi/abi/exports.txt
    # Groups that the linker keeps one copy of would bring the names back: they become ordinary sections.
    "${LD-ld}" -r --gc-sections --force-group-allocation "${wanted[@]}" -o "$dir/kvclient.o" "$1"
    # Of the sections in the compiler's own language there are several behind each other, which nothing can read.
    "${OBJCOPY-objcopy}" --keep-global-symbols=ffi/abi/exports.txt \
        --remove-section=.llvmbc --remove-section=.llvmcmd "$dir/kvclient.o"
    # Names that only what was left out has asked for: some are in newer systems alone.
    "${READELF-readelf}" --relocs --wide "$dir/kvclient.o" | awk '{print $5}' | sort -u >"$dir/used"
    "${NM-nm}" --undefined-only "$dir/kvclient.o" | awk '{print $2}' | grep -vxFf "$dir/used" >"$dir/unused" || true
    "${OBJCOPY-objcopy}" --strip-symbols="$dir/unused" "$dir/kvclient.o"
    "${AR-ar}" rcs "$2" "$dir/kvclient.o"
}

install_all() {
    if [[ ! ${BUILT-} ]] && command -v cargo >/dev/null; then scripts/build.sh; fi
    check_sources
    local mode to from version up
    scratch=$(mktemp -d)
    trap 'rm -r -- "$scratch"' EXIT
    write_archive "$built/libkvclient.a" "$scratch/libkvclient.a"
    while read -r mode to from; do
        [[ $to != *.a ]] || from=$scratch/libkvclient.a
        install -D -m "$mode" -- "$from" "$root/$to"
        # It would be nine tenths of the libraries, and half of the executables.
        if [[ $to == bin/* || $to == *.so.1 || $to == *.a ]] && [[ ${STRIP-strip} ]]; then
            "${STRIP-strip}" --strip-debug -- "$root/$to"
        fi
    done < <(list)
    ln -sf libkvclient.so.1 "$root/$link"
    while read -r to; do
        install -m 644 /dev/null "$root/$to"
        echo ".so man3/kvclient.3" >"$root/$to"
    done < <(pages)
    version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    # The way from LIBDIR up to PREFIX.
    up=$(sed 's|//*|/|g; s|/$||; s|[^/][^/]*|..|g' <<<"$lib")
    while read -r to from; do
        install -D -m 644 /dev/null "$root/$to"
        sed "s|@PREFIX@|$prefix|; s|@LIBDIR@|$lib|; s|@VERSION@|$version|; s|@UP@|$up|" "$from" >"$root/$to"
    done < <(templates)
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
        echo "after the files are in place, run \"ldconfig\" as root so that programs find the library"
    elif ! loader_knows "$prefix/$lib"; then
        echo "the loader does not search $prefix/$lib: link programs with -Wl,-rpath,$prefix/$lib"
    elif ((EUID == 0)); then
        ldconfig
    else
        echo "so that programs find the library, run as root: ldconfig"
    fi
    if [[ ! ${DESTDIR-} && :$(pkg-config --variable pc_path pkg-config 2>/dev/null): != *:"$prefix/$lib/pkgconfig":* ]]; then
        echo "for pkg-config, run: export PKG_CONFIG_PATH=$prefix/$lib/pkgconfig"
    fi
}

uninstall_all() {
    local to
    while read -r _ to _; do rm -f -- "$root/$to"; done < <(list)
    while read -r to; do rm -f -- "$root/$to"; done < <(pages)
    rm -f -- "$root/$link"
    while read -r to _; do rm -f -- "$root/$to"; done < <(templates)
}

case ${1-} in
install) install_all ;;
uninstall) uninstall_all ;;
*) printf 'usage: %s install|uninstall\n' "$0" >&2 && exit 2 ;;
esac
