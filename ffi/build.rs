//! Writes the C header to `OUT_DIR` and sets the soname of the shared library. A build changes nothing in the source
//! tree; `make header` copies the header to `include/`.

use std::env;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=cbindgen.toml");

    // The major number changes with every incompatible change of the interface.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvclient.so.1");
    // Without this flag, the destructor of a thread-local could run after a dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("ffi/cbindgen.toml: {error}"));
    // cbindgen gets the source files and not the crate, because for a crate it would run cargo inside cargo. The header
    // has the order of the modules in lib.rs.
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/lib.rs"))
        .generate()
        .unwrap_or_else(|error| panic!("generating kvclient.h: {error}"))
        .write_to_file(out.join("kvclient.h"));
}
