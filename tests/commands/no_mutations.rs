//! A test that no shipped executable contains the code that can disable rules for mutation testing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The two halves of the marker in every executable in which a rule can be disabled. They are kept
/// apart so that the test does not find its own text.
const MARKER: [&str; 2] = ["mutations-of-kv-core", "-can-be-enabled-here"];

fn has_marker(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let marker = MARKER.concat();
    bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
}

#[test]
fn no_shipped_program_can_disable_a_rule() {
    crate::common::turn::take();
    let server = PathBuf::from(env!("CARGO_BIN_EXE_server"));
    let library = server.with_file_name("libkvclient.so");
    let shipped = [
        server.clone(),
        env!("CARGO_BIN_EXE_coord").into(),
        env!("CARGO_BIN_EXE_client").into(),
        library,
    ];
    for path in shipped {
        assert!(!has_marker(&path), "{} contains the mutations", path.display());
    }
    // A check of the test itself: the marker is found in a program that is linked with the feature, even if it disables
    // no rule.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "kv-core", "--features", "mutations"])
        .args(["--bin", "could-leave-a-rule-out"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo");
    assert!(built.success(), "the program with mutations is not built");
    assert!(has_marker(&server.with_file_name("could-leave-a-rule-out")));
}
