//! Tests of C programs that are built against an installation of `make install` with CMake, Meson and pkg-config.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::package::Package;
use crate::common::programs::{self, Ended};
use crate::common::workshop::root;

/// Time limit for one build step. It is long because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program that needs no cluster, because a handle connects only at its first call.
const PROGRAM: &str = r#"
#include <stdio.h>

#include <kvclient.h>

#if (KVC_VERSION_MAJOR << 16 | KVC_VERSION_MINOR << 8 | KVC_VERSION_PATCH) != KVC_VERSION
#error "the version macros contradict each other"
#endif

int main(void)
{
    kvc_client *client = NULL;

    if (kvc_version() != KVC_VERSION || kvc_open("127.0.0.1:1", NULL, &client) != KVC_OK)
        return 1;
    printf("%d.%d.%d\n", KVC_VERSION_MAJOR, KVC_VERSION_MINOR, KVC_VERSION_PATCH);
    return kvc_close(client) == KVC_OK ? 0 : 1;
}
"#;

/// The source of a user's shared library into which the archive is linked.
const PLUGIN: &str = r#"
#include <kvclient.h>

int plugin_open(kvc_client **client);

int plugin_open(kvc_client **client)
{
    return kvc_open("127.0.0.1:1", NULL, client);
}
"#;

/// Fails with the name of the Debian package if the tool is not installed.
#[track_caller]
fn need(tool: &str, package: &str) {
    if let Err(error) = Command::new(tool).arg("--version").output() {
        panic!("{tool}: {error}; install Debian's package {package} (apt install {package})");
    }
}

/// Creates a build directory with the two sources.
#[track_caller]
fn sources(package: &Package, name: &str) -> PathBuf {
    let dir = package.dir().join(name);
    fs::create_dir(&dir).expect("make a directory");
    fs::write(dir.join("program.c"), PROGRAM).expect("write a program");
    fs::write(dir.join("plugin.c"), PLUGIN).expect("write a library");
    dir
}

/// Runs a build tool; prints its output if it fails.
#[track_caller]
fn build(tool: &str, words: &[&str]) -> Ended {
    programs::run(tool, words, "", LIMIT).with_code(0)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Checks that the program runs, and that it needs the shared library only if it was linked with
/// it.
#[track_caller]
fn check_program(package: &Package, program: &Path, is_shared: bool) {
    let ended = package.run(program, "").with_code(0);
    assert_eq!(ended.stdout, format!("{VERSION}\n"));
    let needed = build("readelf", &["-d", text(program)]).stdout;
    assert_eq!(needed.contains("[libkvclient.so.1]"), is_shared, "{}: {needed}", program.display());
}

/// Returns the symbols that a shared library or an archive defines.
#[track_caller]
fn shown(words: &[&str], file: &Path) -> BTreeSet<String> {
    let listed = build("nm", &[words, &["--defined-only", text(file)]].concat()).stdout;
    let symbols = listed.lines().filter_map(|line| line.split_whitespace().nth(2));
    symbols.map(ToOwned::to_owned).collect()
}

/// Returns the functions of the interface and the names in `more`.
fn interface(more: &[&str]) -> BTreeSet<String> {
    let functions = include_str!("../../ffi/abi/exports.txt").lines();
    functions.chain(more.iter().copied()).map(ToOwned::to_owned).collect()
}

/// Returns the version series (`major.minor`) that is higher by these numbers than the current one.
fn other(major: u32, minor: u32) -> String {
    let mut numbers = VERSION.split('.').map(|n| n.parse::<u32>().expect("a number"));
    let mut next = || numbers.next().expect("three numbers");
    format!("{}.{}", next() + major, next() + minor)
}

/// Builds with CMake, which searches below `place`. The package was configured for another
/// location.
#[track_caller]
fn cmake(package: &Package, name: &str, place: &str) -> PathBuf {
    need("cmake", "cmake");
    let dir = sources(package, name);
    let (series, minor, major) = (other(0, 0), other(0, 1), other(1, 0));
    let lists = format!(
        "cmake_minimum_required(VERSION 3.13)\n\
         project(test C)\n\
         foreach(version IN ITEMS {minor} {major})\n\
         \x20 find_package(kvclient ${{version}} CONFIG QUIET)\n\
         \x20 if(kvclient_FOUND)\n\
         \x20   message(FATAL_ERROR \"version {VERSION} was accepted for ${{version}}\")\n\
         \x20 endif()\n\
         endforeach()\n\
         find_package(kvclient {VERSION} EXACT CONFIG REQUIRED)\n\
         # A second time, as by another part of the same project.\n\
         find_package(kvclient {series} CONFIG REQUIRED)\n\
         find_package(kvclient {series}...{major} CONFIG REQUIRED)\n\
         add_compile_options(-Wall -Wextra -Wpedantic -Werror)\n\
         add_executable(shared program.c)\n\
         target_link_libraries(shared PRIVATE kvclient::kvclient)\n\
         add_executable(static program.c)\n\
         target_link_libraries(static PRIVATE kvclient::kvclient_static)\n\
         add_library(plugin SHARED plugin.c)\n\
         target_link_libraries(plugin PRIVATE kvclient::kvclient_static)\n"
    );
    fs::write(dir.join("CMakeLists.txt"), lists).expect("write a file");
    let to = dir.join("build");
    let place = format!("-DCMAKE_PREFIX_PATH={}", package.path(place).display());
    let warnings = ["--warn-uninitialized", "-Werror=dev"];
    build("cmake", &[&["-S", text(&dir), "-B", text(&to), &*place], &warnings[..]].concat());
    build("cmake", &["--build", text(&to), "--verbose"]);
    to
}

#[test]
fn cmake_finds_both_libraries_wherever_the_package_was_moved() {
    let package = Package::open();
    package.make("install");
    let built = cmake(&package, "cmake", "");
    check_program(&package, &built.join("shared"), true);
    check_program(&package, &built.join("static"), false);
    let own = BTreeSet::from(["plugin_open".to_owned()]);
    assert_eq!(shown(&["-D"], &built.join("libplugin.so")), own);

    // With another library directory, the relative path to the header is longer.
    let package = Package::open();
    package.make_with("install", &["LIBDIR=lib/machine/"]).with_code(0);
    let built = cmake(&package, "cmake", "lib/machine/cmake/kvclient");
    check_program(&package, &built.join("static"), false);
}

#[test]
fn cmake_reports_a_missing_file_of_the_package() {
    need("cmake", "cmake");
    let package = Package::open();
    package.make("install");
    fs::remove_file(package.path("lib/libkvclient.a")).expect("remove the archive");
    let dir = sources(&package, "cmake");
    let lists = "cmake_minimum_required(VERSION 3.13)\nproject(test C)\n\
                 find_package(kvclient CONFIG REQUIRED)\n";
    fs::write(dir.join("CMakeLists.txt"), lists).expect("write a file");
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", package.path("").display());
    let words = ["-S", text(&dir), "-B", text(&dir), &prefix];
    let ended = programs::run("cmake", words, "", LIMIT);
    let said = ended.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(ended.code != Some(0) && said.contains("is incomplete: "), "{ended:?}");
}

#[test]
fn meson_finds_the_shared_and_the_static_library() {
    need("meson", "meson");
    need("ninja", "ninja-build");
    need("pkg-config", "pkg-config");
    let package = Package::open();
    let prefix = package.path("");
    let words = [format!("PREFIX={}", text(&prefix).trim_end_matches('/')), "DESTDIR=".to_owned()];
    package.make_with("install", &words.each_ref().map(String::as_str)).with_code(0);
    let dir = sources(&package, "meson");
    let file = format!(
        "project('test', 'c', default_options: ['c_std=c99', 'werror=true', 'warning_level=3'])\n\
         version = '>={VERSION}'\n\
         shared = dependency('kvclient', version: version, method: 'pkg-config')\n\
         archive = dependency('kvclient-static', version: version, method: 'pkg-config')\n\
         asked = dependency('kvclient', static: true, method: 'pkg-config')\n\
         executable('shared', 'program.c', dependencies: shared)\n\
         executable('static', 'program.c', dependencies: archive)\n\
         executable('asked', 'program.c', dependencies: asked)\n\
         shared_library('plugin', 'plugin.c', dependencies: archive)\n"
    );
    fs::write(dir.join("meson.build"), file).expect("write a file");
    let to = dir.join("build");
    let search = format!("PKG_CONFIG_LIBDIR={}", package.path("lib/pkgconfig").display());
    // When the compiler is given, Meson does not search for a compiler cache.
    build("env", &["CC=gcc", &search, "meson", "setup", text(&to), text(&dir)]);
    build("ninja", &["-C", text(&to), "-v"]);
    for (program, is_shared) in [("shared", true), ("static", false), ("asked", false)] {
        check_program(&package, &to.join(program), is_shared);
    }
    let own = BTreeSet::from(["plugin_open".to_owned()]);
    assert_eq!(shown(&["-D"], &to.join("libplugin.so")), own);
}

/// Compiles a source with gcc and these flags.
#[track_caller]
fn gcc(source: &Path, to: &Path, flags: &[String]) {
    let mut words = vec!["-std=c99", text(source)];
    words.extend(flags.iter().map(String::as_str));
    words.extend(["-o", text(to)]);
    build("gcc", &words);
}

#[test]
fn the_flags_of_pkg_config_build_programs_with_either_library() {
    need("pkg-config", "pkg-config");
    let package = Package::open();
    package.make("install");
    let dir = sources(&package, "by-hand");
    for (name, words, is_shared) in [
        ("shared", &["kvclient"][..], true),
        ("static", &["kvclient-static"], false),
        ("all", &["--static", "kvclient-static"], false),
    ] {
        let flags = package.flags(words);
        // Not every linker supports `-l:`.
        assert!(flags.iter().all(|word| !word.starts_with("-l:")), "{flags:?}");
        gcc(&dir.join("program.c"), &dir.join(name), &flags);
        check_program(&package, &dir.join(name), is_shared);
    }
}

#[test]
fn the_archive_exports_only_the_interface_and_pkg_config_hides_even_that_in_a_plugin() {
    need("pkg-config", "pkg-config");
    let package = Package::open();
    package.make("install");
    let archive = package.path("lib/libkvclient.a");
    assert_eq!(shown(&["--extern-only"], &archive), interface(&[]));

    let dir = sources(&package, "by-hand");
    let with = |mut flags: Vec<String>| {
        flags.extend(["-shared".to_owned(), "-fPIC".to_owned()]);
        gcc(&dir.join("plugin.c"), &dir.join("plugin.so"), &flags);
        shown(&["-D"], &dir.join("plugin.so"))
    };
    let own = BTreeSet::from(["plugin_open".to_owned()]);
    assert_eq!(with(package.flags(&["kvclient-static"])), own);
    // A library linked with the plain archive exports the interface, but no symbol of Rust.
    let include = format!("-I{}", root().join("include").display());
    let plain = [include, text(&archive).to_owned()];
    assert_eq!(with(plain.to_vec()), interface(&["plugin_open"]));
}

/// Checks that the archive refers only to functions that it uses. The system on which a program is built may not
/// provide others.
#[test]
fn the_archive_refers_to_no_system_function_that_it_does_not_use() {
    let package = Package::open();
    package.make("install");
    let archive = package.path("lib/libkvclient.a");
    let listed = build("nm", &["--undefined-only", text(&archive)]).stdout;
    let asked: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(asked.contains(&"malloc"), "{asked:?}");
    // The standard library starts processes with these functions; it uses the second one from glibc 2.39 on.
    for name in ["posix_spawnp", "pidfd_spawnp", "fork"] {
        assert!(!asked.contains(&name), "{name} of {asked:?}");
    }
}
