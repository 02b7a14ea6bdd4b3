//! Tests of the shared library's dynamic section: its exports, and the libraries that it needs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the path of a library that was built with this test, in the directory of the test's executable.
fn library() -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name("libkvclient.so");
    assert!(beside.is_file(), "{} was not built", beside.display());
    beside
}

fn stdout(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).arg(library()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_exports_match_the_list_exactly() {
    let list =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("abi/exports.txt"));
    let list = list.unwrap();
    let symbols = stdout("nm", &["-D", "--defined-only"]);
    let mut exported: Vec<&str> =
        symbols.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    exported.sort_unstable();
    assert_eq!(exported, list.lines().collect::<Vec<_>>(), "`make abi` regenerates the list");
}

#[test]
fn it_depends_only_on_the_c_library_and_the_unwinder() {
    let dynamic = stdout("readelf", &["-d"]);
    let mut needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        // The dynamic loader is ignored, because every program needs it.
        .filter(|name| !name.starts_with("ld-linux-"))
        .collect();
    needed.sort_unstable();
    assert_eq!(needed, ["libc.so.6", "libgcc_s.so.1"]);
}

/// Returns every glibc version that a text states as the minimum, in the form "glibc 2.34 or later".
fn claimed(text: &str) -> Vec<(u32, u32)> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let claims = text.match_indices(" or later").map(|(at, _)| &text[..at]);
    claims.filter_map(|before| version(before.rsplit_once("glibc ")?.1)).collect()
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let minor = rest.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[test]
fn it_needs_no_later_glibc_than_the_guide_and_the_readme_state() {
    let symbols = stdout("objdump", &["-T"]);
    let needed: BTreeSet<(u32, u32)> = symbols
        .split(['(', ')', ' '])
        .filter_map(|word| version(word.strip_prefix("GLIBC_")?))
        .collect();
    let most = *needed.last().expect("it needs glibc");
    for file in ["docs/c-guide.md", "README.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let claims = claimed(&std::fs::read_to_string(path).unwrap());
        let [claim] = claims[..] else { panic!("{file} states the required glibc: {claims:?}") };
        assert!(most <= claim, "{file} states {claim:?}, but the library needs {most:?}");
    }
}
