//! The executable `kv-echo`; see `kv_bench::echo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_bench::echo::main()
}
