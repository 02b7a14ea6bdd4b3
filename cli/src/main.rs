//! The executable `client`; see `kv_cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_cli::main()
}
