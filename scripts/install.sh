#!/usr/bin/env bash
# Installs the executables, the C library and their manual, or removes them. `make` passes these environment variables
# on; the defaults are in parentheses:
#
#   PREFIX    the directory where the installed files will be used (/usr/local)
#   LIBDIR    the directory of libraries, relative to PREFIX (lib); for example lib/x86_64-linux-gnu
#   MANDIR    the directory of the manual, relative to PREFIX (share/man)
#   DESTDIR   a directory below which PREFIX is created, for packaging (none)
#   BUILT     a directory with coord, server, client, kv-bench, libkvclient.so and libkvclient.a. Without it they are
#             built in bin/. If cargo is missing, as under sudo, those that `make` left in bin/ are used.
#   STRIP     the program that removes debug information (strip); if it is empty, nothing is removed
#   LD, OBJCOPY, READELF, NM, AR   the linker and the tools that create the archive (those of GNU binutils)
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

# The paths appear in kvclient.pc and in options of compilers, where a blank ends a word.
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

# Lists the files that are copied: mode, path below PREFIX, source.
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
# The symbolic link that linkers use. It has no source file.
readonly link=$lib/libkvclient.so
# Lists the files that are generated from templates: path below PREFIX, template.
templates() {
    cat <<TEMPLATES
$lib/pkgconfig/kvclient.pc ffi/kvclient.pc.in
$lib/pkgconfig/kvclient-static.pc ffi/kvclient-static.pc.in
$lib/cmake/kvclient/kvclientConfig.cmake ffi/kvclientConfig.cmake.in
$lib/cmake/kvclient/kvclientConfigVersion.cmake ffi/kvclientConfigVersion.cmake.in
TEMPLATES
}
# Lists the manual pages of the functions, such as kvc_put.3. Each one only refers to the library's page.
pages() { sed "s|.*|$man/man3/&.3|" ffi/abi/exports.txt; }

# Exits if a file to copy is missing, before anything is copied, so that no partial installation results.
check_sources() {
    local from missing=()
    while read -r _ _ from; do [[ -f $from ]] || missing+=("$from"); done < <(list)
    if ((${#missing[@]})); then
        printf 'cannot install; run "make" first (nothing was installed): there is no %s\n' "${missing[*]}" >&2
        exit 1
    fi
}

# Creates the static library. cargo's archive makes every function of Rust's standard library visible. A program with
# two such archives would define each function twice, and a shared library would export them. So the archive is linked
# to one object in which only the functions of the interface are visible, without sections that they do not need.
write_archive() { # <cargo's archive> <where to>
    local dir=$scratch function wanted=()
    while read -r function; do wanted+=("--undefined=$function"); done <ffi/abi/exports.txt
    # Section groups would make the names visible again, so they become ordinary sections.
    "${LD-ld}" -r --gc-sections --force-group-allocation "${wanted[@]}" -o "$dir/kvclient.o" "$1"
    # The linker concatenates the sections with LLVM bitcode of all objects, and no tool can read the result.
    "${OBJCOPY-objcopy}" --keep-global-symbols=ffi/abi/exports.txt \
        --remove-section=.llvmbc --remove-section=.llvmcmd "$dir/kvclient.o"
    # Removes undefined names to which only removed sections referred. Some of them exist only in newer systems.
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
        # Debug information would take nine tenths of the libraries, and half of the executables.
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
    # The relative path from LIBDIR to PREFIX.
    up=$(sed 's|//*|/|g; s|/$||; s|[^/][^/]*|..|g' <<<"$lib")
    while read -r to from; do
        install -D -m 644 /dev/null "$root/$to"
        sed "s|@PREFIX@|$prefix|; s|@LIBDIR@|$lib|; s|@VERSION@|$version|; s|@UP@|$up|" "$from" >"$root/$to"
    done < <(templates)
    make_known
}

# Succeeds if the dynamic loader searches this directory by default.
loader_knows() {
    local known
    while read -r known; do
        [[ ! $known -ef $1 ]] || return 0
    done < <(ldconfig -NXv 2>/dev/null | sed -n 's|^\(/[^:]*\):.*|\1|p')
    return 1
}

# Updates the dynamic loader's cache, or prints how programs find the library. Prints the setting that pkg-config needs.
make_known() {
    PATH=$PATH:/usr/sbin:/sbin # ldconfig may be in directories that are not on the PATH of ordinary users
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
