//! The coordinator: starts the servers of a cluster, monitors them, provides clients with the map, and stops the
//! cluster in an orderly way.
//!
//! ```text
//!   cluster file, flags -> plan -> driver -> spawn (local, adopted, remote) -----> servers
//!   stored state -> restart ----^
//!   dumps, state -> restore ----^
//!
//!      clients: MAP, STATUS -> clients ---+      +-- driver/links <- STARTED, HEARTBEAT
//!                                         v      v
//!      coord stop, detach -> stop_port -> driver <-> kv_core::cluster
//!      signals, end of input -> stop ---> |      ^
//!                           exits, kill --+      +-- driver/links -> SET-SECONDARY, DRAIN, DUMP, SHUTDOWN
//! ```
//!
//! The driver, with its links, runs on one thread with one async runtime. Another thread serves clients from snapshots.
//! Data does not pass through the coordinator. All decisions are made in [`kv_core::cluster`]; this crate carries them
//! out.

mod args;
mod ask;
mod ask_flush;
mod ask_stop;
mod check;
mod clients;
mod clock;
mod cluster_file;
mod collect;
mod connection;
mod directory;
mod driver;
mod failure;
mod guests;
mod listener;
mod lock;
mod logs;
mod ls;
mod machine;
mod moves;
mod own_address;
mod own_limits;
mod place;
mod plan;
mod printable;
mod progress;
mod quote;
mod random;
mod ready;
mod restart;
mod restore;
mod screen;
mod settings;
mod snapshot;
mod spawn;
mod stop;
mod stop_port;
mod store;
mod survey;
mod table;
mod units;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
use ask_stop::Asked;
use failure::Failure;

/// The exit status after a failed operation.
const FAILED: u8 = 1;
/// The exit status if the command line or the cluster file is invalid; nothing was started.
const BAD_USAGE: u8 = 2;

/// Runs the program `coord`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let ended = run(args);
    logs::flush();
    match ended {
        Ok(code) => code,
        Err(Failure::Usage(message)) => end(&message, BAD_USAGE),
        Err(Failure::Failed(message)) => end(&message, FAILED),
    }
}

fn end(message: &str, code: u8) -> ExitCode {
    // A closed standard error must not turn a message into a panic.
    let _ = writeln!(std::io::stderr(), "coord: {message}");
    ExitCode::from(code)
}

fn run(args: Args) -> Result<ExitCode, Failure> {
    let done = match &args.command {
        Some(Command::Status(status)) if status.watch => watch::run(status.clone()),
        Some(Command::Status(status)) => {
            return ask::run(status).map(|health| ExitCode::from(health.exit_code()));
        }
        Some(Command::Detach(detach)) => ask_stop::detach(detach),
        Some(Command::Replace(replace)) => ask_stop::replace(replace),
        Some(Command::Set(set)) => ask_stop::set(set),
        Some(Command::Flush(flush)) => in_runtime(ask_flush::run(flush)),
        Some(Command::Collect(collect)) => in_runtime(collect::run(collect)),
        Some(Command::Ls(listing)) => return in_runtime(ls::run(listing)),
        Some(Command::Stop(stop)) => match ask_stop::stop(stop)? {
            Asked::Done => Ok(()),
            Asked::NoCoordinator => in_runtime(ask_stop::stop_alone(stop)),
        },
        None if args.check || args.check_file || args.list_hosts => in_runtime(check::run(&args)),
        None => in_runtime(driver::run(args)),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Runs a task, and the tasks that it spawns, on this thread until the task has ended.
fn in_runtime<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // The handlers are installed first, because a stray signal must not end the coordinator.
    kv_daemon::signals::pass_over();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the async runtime: {error}")))?;
    let tasks = tokio::task::LocalSet::new();
    let ended = tasks.block_on(&runtime, task);
    drop(tasks);
    // The shutdown does not wait for threads that a stalled device blocks.
    runtime.shutdown_background();
    ended
}
