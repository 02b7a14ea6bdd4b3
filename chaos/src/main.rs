//! The program `chaos`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_chaos::main()
}
