//! The executable `client`; see `kv_client::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_client::cli::main()
}
