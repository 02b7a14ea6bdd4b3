//! The program `coord`: a thin main over the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_coordinator::main()
}
