//! C programs, compiled and run with the library as cargo has built it for the test.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::programs::{self, Ended};

/// What compiling a program, or running one, may take; long, because the machine may be busy.
const LIMIT: Duration = Duration::from_secs(120);
/// Every warning is an error.
pub(crate) const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A library that cargo has built for this test, as it builds every dependency: beside it.
#[track_caller]
pub(crate) fn library(file: &str) -> PathBuf {
    let beside = std::env::current_exe().expect("this program's path").with_file_name(file);
    assert!(beside.is_file(), "{} was not built", beside.display());
    beside
}

/// A directory with programs, and the shared library under the name that they ask for at run time.
#[derive(Debug)]
pub(crate) struct Workshop(tempfile::TempDir);

impl Workshop {
    #[track_caller]
    pub(crate) fn open() -> Workshop {
        let dir = tempfile::tempdir().expect("make a directory");
        for name in ["libkvclient.so", "libkvclient.so.1"] {
            symlink(library("libkvclient.so"), dir.path().join(name)).expect("make a link");
        }
        Workshop(dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    /// Compiles a program to C99, every warning an error, with these words after its source.
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

    /// The same with the shared library, found by its name.
    #[track_caller]
    pub(crate) fn compile_shared(&self, source: &Path, words: &[&str]) -> PathBuf {
        let place = format!("-L{}", self.dir().display());
        let words: Vec<&str> =
            words.iter().copied().chain([place.as_str(), "-lkvclient"]).collect();
        self.compile(source, &words)
    }

    /// Runs a program to its end.
    #[track_caller]
    pub(crate) fn run(&self, program: &Path, arguments: &[&str]) -> Ended {
        self.run_under(&[], program, arguments)
    }

    /// The same with words before the program: variables of its environment, or a tool that runs it.
    #[track_caller]
    pub(crate) fn run_under(&self, tool: &[&str], program: &Path, arguments: &[&str]) -> Ended {
        // Through env, which sets the variable for that program alone.
        let library_path = format!("LD_LIBRARY_PATH={}", self.dir().display());
        let program = program.to_str().expect("a path in UTF-8");
        let words = std::iter::once(library_path.as_str()).chain(tool.iter().copied());
        programs::run("env", words.chain([program]).chain(arguments.iter().copied()), "", LIMIT)
    }
}
