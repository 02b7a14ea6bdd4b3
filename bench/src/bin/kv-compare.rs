//! The executable `kv-compare`; see `kv_bench::compare`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_bench::compare::main()
}
