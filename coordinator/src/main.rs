//! The program `coord`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_coordinator::main()
}
