//! C programs, compiled and run with the library as built by cargo for the test.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::programs::{self, Ended};
use super::turn;

/// Time limit for compiling or running a program. It is long because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);
/// Compiler flags that make every warning an error.
pub(crate) const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Returns the root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the path of a library that cargo built as a dependency of this test, in the directory of the test's
/// executable.
#[track_caller]
pub(crate) fn library(file: &str) -> PathBuf {
    let beside = std::env::current_exe().expect("this program's path").with_file_name(file);
    assert!(beside.is_file(), "{} was not built", beside.display());
    beside
}

/// A directory with programs and with the shared library under its run-time name (soname).
#[derive(Debug)]
pub(crate) struct Workshop(tempfile::TempDir);

impl Workshop {
    #[track_caller]
    pub(crate) fn open() -> Workshop {
        turn::take();
        let dir = tempfile::tempdir().expect("make a directory");
        for name in ["libkvclient.so", "libkvclient.so.1"] {
            symlink(library("libkvclient.so"), dir.path().join(name)).expect("make a link");
        }
        Workshop(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Compiles a C99 program with every warning an error. `words` follow the source on the command
    /// line.
    #[track_caller]
    pub(crate) fn compile(&self, source: &Path, words: &[&str]) -> PathBuf {
        let program = self.dir().join(source.file_stem().expect("a file"));
        let include = root().join("include");
        let all = std::iter::once("-std=c99").chain(STRICT).map(OsStr::new);
        let all = all.chain(["-I".as_ref(), include.as_os_str(), source.as_os_str()]);
        let all = all.chain(words.iter().map(OsStr::new));
        let all = all.chain(["-o".as_ref(), program.as_os_str()]);
        programs::run("gcc", all, "", LIMIT).with_code(0);
        program
    }

    /// Does the same as [`Workshop::compile`], and links the program with the shared library.
    #[track_caller]
    pub(crate) fn compile_shared(&self, source: &Path, words: &[&str]) -> PathBuf {
        let place = format!("-L{}", self.dir().display());
        let words: Vec<&str> =
            words.iter().copied().chain([place.as_str(), "-lkvclient"]).collect();
        self.compile(source, &words)
    }

    /// Runs a program and waits for its exit.
    #[track_caller]
    pub(crate) fn run(&self, program: &Path, arguments: &[&str]) -> Ended {
        self.run_under(&[], program, arguments)
    }

    /// Does the same as [`Workshop::run`], with words before the program: environment variables, or a tool that runs
    /// the program.
    #[track_caller]
    pub(crate) fn run_under(&self, tool: &[&str], program: &Path, arguments: &[&str]) -> Ended {
        // The program is run by env, which sets the variable only for that program.
        let library_path = format!("LD_LIBRARY_PATH={}", self.dir().display());
        let program = program.to_str().expect("a path in UTF-8");
        let words = std::iter::once(library_path.as_str()).chain(tool.iter().copied());
        programs::run("env", words.chain([program]).chain(arguments.iter().copied()), "", LIMIT)
    }
}
