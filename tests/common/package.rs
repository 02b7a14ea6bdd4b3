//! The result of `make install`, in a temporary directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::TIMEOUT;
use super::programs::{self, CLIENT, COORD, Ended, KV_BENCH, SERVER};
use super::workshop::{library, root};

/// A directory with links to the files that cargo built for this test, and with the package that `make install` makes
/// of them.
#[derive(Debug)]
pub(crate) struct Package(tempfile::TempDir);

impl Package {
    #[track_caller]
    pub(crate) fn open() -> Package {
        let package = Package(tempfile::tempdir().expect("make a directory"));
        let built = package.0.path().join("built");
        fs::create_dir(&built).expect("make a directory");
        let [so, archive] = ["libkvclient.so", "libkvclient.a"].map(library);
        for (name, file) in
            [("coord", COORD), ("server", SERVER), ("client", CLIENT), ("kv-bench", KV_BENCH)]
                .map(|(name, file)| (name, PathBuf::from(file)))
                .into_iter()
                .chain([("libkvclient.so", so), ("libkvclient.a", archive)])
        {
            symlink(file, built.join(name)).expect("make a link");
        }
        package
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn destination(&self) -> PathBuf {
        self.0.path().join("destination")
    }

    pub(crate) fn path(&self, installed: &str) -> PathBuf {
        self.destination().join("opt/kv").join(installed)
    }

    #[track_caller]
    pub(crate) fn make(&self, target: &str) {
        self.make_with(target, &[]).with_code(0);
    }

    #[track_caller]
    pub(crate) fn make_with(&self, target: &str, more: &[&str]) -> Ended {
        let words = [
            "-C".to_owned(),
            root().display().to_string(),
            target.to_owned(),
            "PREFIX=/opt/kv".to_owned(),
            format!("DESTDIR={}", self.destination().display()),
            format!("BUILT={}", self.0.path().join("built").display()),
        ];
        let words = words.into_iter().chain(more.iter().map(|word| (*word).to_owned()));
        programs::run("make", words, "", TIMEOUT)
    }

    /// Returns all files and links by their paths below PREFIX.
    pub(crate) fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut left = vec![self.destination()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().expect("its type").is_dir() {
                    left.push(entry.path());
                } else {
                    let path = entry.path();
                    let path = path.strip_prefix(self.path("")).expect("below PREFIX");
                    found.insert(path.display().to_string());
                }
            }
        }
        found
    }

    /// Returns the compiler arguments that pkg-config prints for compiling and linking a program.
    #[track_caller]
    pub(crate) fn flags(&self, words: &[&str]) -> Vec<String> {
        let search = format!("PKG_CONFIG_LIBDIR={}", self.path("lib/pkgconfig").display());
        // The paths in the file are those of the machine on which the package will be installed.
        let sysroot = format!("PKG_CONFIG_SYSROOT_DIR={}", self.destination().display());
        let all = [&search, &sysroot, "pkg-config", "--cflags", "--libs"];
        let all = all.into_iter().chain(words.iter().copied());
        let ended = programs::run("env", all, "", TIMEOUT).with_code(0);
        ended.stdout.split_whitespace().map(ToOwned::to_owned).collect()
    }

    /// Compiles the first example as a user would.
    #[track_caller]
    pub(crate) fn compile(&self, name: &str, flags: &[String]) -> PathBuf {
        let program = self.0.path().join(name);
        let source = root().join("examples/c/hello.c").display().to_string();
        let output = ["-o".to_owned(), program.display().to_string()];
        let words = std::iter::once(source).chain(flags.iter().cloned()).chain(output);
        programs::run("gcc", words, "", TIMEOUT).with_code(0);
        program
    }

    #[track_caller]
    pub(crate) fn run(&self, program: &Path, endpoint: &str) -> Ended {
        let libraries = format!("LD_LIBRARY_PATH={}", self.path("lib").display());
        let program = program.display().to_string();
        programs::run("env", [libraries.as_str(), &program, endpoint], "", TIMEOUT)
    }
}
