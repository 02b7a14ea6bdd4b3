//! The `server` executable; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_server::main()
}
