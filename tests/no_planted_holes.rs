//! What can leave a rule of the machines out, for the simulator to notice, is in nothing that ships.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The two halves of what stands in every executable in which a hole can be opened. In halves, so that
/// this test's own text is not what it looks for.
const MARKER: [&str; 2] = ["planted-holes-of-kv-core", "-can-be-opened-here"];

fn has_marker(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let marker = MARKER.concat();
    bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
}

#[test]
fn no_rule_can_be_left_out_in_a_program_that_ships() {
    let server = PathBuf::from(env!("CARGO_BIN_EXE_server"));
    let library = server.with_file_name("libkvclient.so");
    let shipped =
        [server, env!("CARGO_BIN_EXE_coord").into(), env!("CARGO_BIN_EXE_client").into(), library];
    for path in shipped {
        assert!(!has_marker(&path), "{} can leave rules out", path.display());
    }
    // And the marker would be found: a program that is linked with the switch has it, though it opens
    // no hole.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/holes");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "kv-core", "--features", "holes"])
        .args(["--bin", "could-leave-a-rule-out", "--target-dir"])
        .arg(&target)
        .current_dir(root)
        .status()
        .expect("cargo");
    assert!(built.success(), "the program with holes is not built");
    assert!(has_marker(&target.join("debug/could-leave-a-rule-out")));
}
