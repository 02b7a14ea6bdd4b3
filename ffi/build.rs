//! Writes the C header to `OUT_DIR` (a build changes nothing in the source tree; `make header` copies
//! it to `include/`) and names the shared library as C programs link to it.

use std::env;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=cbindgen.toml");

    // The major number changes with an incompatible change of the interface.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvclient.so.1");
    // A thread-local's destructor would run after a dlclose otherwise.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("ffi/cbindgen.toml: {error}"));
    // From the source rather than the crate, which would run cargo inside cargo. It follows the
    // modules in the order in which lib.rs names them.
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/lib.rs"))
        .generate()
        .unwrap_or_else(|error| panic!("generating kvclient.h: {error}"))
        .write_to_file(out.join("kvclient.h"));
}
