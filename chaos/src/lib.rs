//! Real clusters under load, and everything that can happen to their processes and links; afterwards
//! every promise is checked.
//!
//! ```text
//!   run           rounds: how many clusters, of how many servers, with how many faults
//!     round         one cluster from its start to its verdict
//!       cluster       coord and its servers; status; stop
//!       load          client processes: this program again, as `worker`     keys, flight
//!       faults        what there is, and what comes next
//!       strike        carries one out       steps: the coordinator's log    process: signals
//!       network       a namespace for each server; links that can be cut
//!       restored      a cluster brought back from the dumps, read again
//!       verdict       history (kv_history), dumps, effects
//!       dumps         the files of a stopped cluster
//!       noticed       what clients noticed: stalls, operations that were not carried through    limits
//!     ordinary      rounds of ordinary days: orderly ends, suspends, stalls, disks, floods, memory
//!     enough        what a run must have done at least
//!     doubles       what the rounds showed in which two servers died together
//!     report        the table, and JSON
//!   measure       the figures of docs/recovery.md    sshd: a host of its own for one server
//! ```

mod abilities;
mod args;
mod bulk;
mod clock;
mod cluster;
mod doubles;
mod dumps;
mod enough;
mod faults;
mod flight;
mod keys;
mod limits;
mod load;
mod measure;
mod network;
mod noticed;
mod ordinary;
mod process;
mod random;
mod report;
mod restored;
mod round;
mod run;
mod sshd;
mod steps;
mod strike;
mod verdict;
mod worker;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

/// Exit code: a promise was broken, or the run itself failed.
const FAILED: u8 = 1;

/// The program `chaos`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.command {
        Some(Command::Worker(worker)) => worker::run(worker).map(|()| true),
        Some(Command::Measure(figures)) => cluster::Programs::find(args.programs.as_deref())
            .and_then(|programs| measure::run(figures, &programs)),
        None => run::run(&args),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            // A closed standard error must not turn a message into a panic.
            let _ = writeln!(std::io::stderr(), "chaos: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
