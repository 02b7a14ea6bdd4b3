//! The load generator `kv-bench`, the minimal server `kv-echo`, and the comparison `kv-compare`.
//!
//! ```text
//!   args           the command line                    target: address of the store under load
//!     |
//!   run            fills the keys, then warms up and measures; watches the clock and the CPUs
//!     |                                                control, cpu, live
//!   driver         one thread: draws operations, checks responses, counts
//!     |   keyspace, distribution   the next key (zipf or uniform)
//!     |   arrival_rate             its time: closed loop, or an open one at a rate
//!     |   value, model             the value that a key must hold
//!     |   tally                    latencies and counts
//!     +-- sockets    many connections, one epoll       wire: redis, memcached, kv, echo
//!     |   stream     one of them, over TCP or a Unix-domain socket
//!     +-- library    one client of the crate kv-client, submit and poll
//!     |
//!   report         table, JSON, CSV
//!
//!   echo           kv-echo: one process (bare ring), or two (bare chain)
//!   compare        kv-compare: alternating runs of peers, lower bounds and this store
//! ```

mod args;
mod arrival_rate;
mod cluster_map;
pub mod compare;
mod control;
mod cpu;
mod distribution;
mod driver;
pub mod echo;
mod keyspace;
mod library;
mod live;
mod model;
mod numbers;
mod report;
mod run;
mod sockets;
mod stream;
mod tally;
mod target;
mod value;
mod wire;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

/// The exit status if a response was wrong, an operation failed, or the run itself failed.
const FAILED: u8 = 1;
/// The exit status for an invalid command line.
const WRONG_USAGE: u8 = 2;

/// Runs the program `kv-bench`.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    let plan = match args.plan() {
        Ok(plan) => plan,
        Err(error) => return complain("kv-bench", &error, WRONG_USAGE),
    };
    match run::run(&plan) {
        Ok(report) => {
            let text = report.render(args.format());
            // A closed standard output is not a failure of the run.
            let _ = writeln!(std::io::stdout(), "{text}");
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => complain("kv-bench", &error, FAILED),
    }
}

/// Prints the error and returns the exit status. If standard error is closed, the message is dropped; it must not cause
/// a panic.
fn complain(program: &str, error: &anyhow::Error, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{program}: {error:#}");
    ExitCode::from(code)
}
