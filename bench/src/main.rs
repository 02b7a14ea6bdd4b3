//! The executable `kv-bench`; see `kv_bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_bench::main()
}
