//! Runs of real clusters under load, with injected faults of processes and links. After each round every guarantee is
//! checked.
//!
//! ```text
//!   run           rounds: number of clusters, servers and faults
//!     round         one cluster from its start to its verdict
//!       cluster       coord and its servers; status; stop
//!       load          client processes: this program again, as `worker`     keys, flight
//!         worker        operations on registers
//!         objects       operations on objects, scans, and their checks
//!         histories     what the processes have recorded
//!       faults        the faults, and the choice of the next one
//!       strike        injects a fault      steps: the coordinator's log
//!       network       a namespace for each server; links that can be cut
//!       restored      a cluster restored from the dumps, read again
//!       verdict       history (kv_history), dumps, effects
//!       dumps         the files of a stopped cluster
//!       noticed       effects on clients: stalls, operations that were not served    limits
//!     ordinary      rounds of ordinary days: exits, suspensions, stalls, disks, floods, memory
//!     enough        the minimum that a run must have done
//!     doubles       the results of rounds in which two servers died together
//!     report        the table, and JSON
//!   measure       the figures of docs/recovery.md
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
mod histories;
mod keys;
mod limits;
mod load;
mod measure;
mod network;
mod noticed;
mod objects;
mod ordinary;
mod report;
mod restored;
mod round;
mod run;
mod steps;
mod strike;
mod verdict;
mod worker;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

/// The exit status if a guarantee was violated or the run itself failed.
const FAILED: u8 = 1;

/// Runs the program `chaos`.
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
            // If standard error is closed, the message is dropped; it must not cause a panic.
            let _ = writeln!(std::io::stderr(), "chaos: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
