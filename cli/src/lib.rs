//! The command line `client`: operations in, one line of output each.
//!
//! ```text
//!   terminal ---- line by line ----+
//!   (terminal.rs)                  v
//!   file, pipe -- lines.rs ---> pipeline.rs ---> output in the order of the lines
//!   (batch.rs)                     |  many in flight, in order per key
//!                                  v
//!                              the library
//! ```

#[cfg(test)]
#[path = "../../client/tests/common/mod.rs"]
mod fake;

mod args;
mod batch;
mod change;
mod command;
mod completion;
mod cursor;
mod help;
mod lines;
mod output;
mod parse;
mod pipeline;
mod scan;
mod task;
mod terminal;
mod text;
mod words;

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use kv_client::{Client, Level, Log, Options};

use args::{Args, Source};
use output::Output;
use pipeline::Pipeline;

/// The log filter if `KV_LOG` is not set or invalid.
const DEFAULT_LOG_FILTER: &str = "info";

/// Runs the program. Exit status: 0 if every operation succeeded, 1 if one failed or the program could not continue, 2
/// for wrong usage. At the prompt, failed operations do not change the status.
pub fn main() -> ExitCode {
    let args = Args::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the operations. Returns whether all succeeded; always true for the prompt.
fn run(args: &Args) -> anyhow::Result<bool> {
    let mut options = Options { deadline: args.timeout, ..Options::default() };
    if let Some(path) = &args.log {
        start_log(path)?;
        options.log = Log::to(|level, words| match level {
            Level::Warning => tracing::warn!("{words}"),
            Level::Info => tracing::info!("{words}"),
            Level::Debug => tracing::debug!("{words}"),
        });
    }
    let endpoints = args.endpoints().map_err(anyhow::Error::msg)?;
    let client = Client::open(&endpoints, options)?;
    let mut pipeline = Pipeline::new(client, args.timeout);
    let stdin = std::io::stdin();
    match args.source() {
        Source::Unnamed if stdin.is_terminal() && std::io::stdout().is_terminal() => {
            terminal::run(&mut pipeline, &endpoints)?;
            Ok(true)
        }
        Source::Unnamed | Source::StandardInput => {
            let input = stdin.as_fd().try_clone_to_owned().context("opening standard input")?;
            batch::run(&mut pipeline, input, &mut Output::standard())
        }
        Source::File(path) => {
            let file = File::open(path)
                .with_context(|| format!("opening the operations file {}", path.display()))?;
            batch::run(&mut pipeline, OwnedFd::from(file), &mut Output::standard())
                .with_context(|| format!("running the operations file {}", path.display()))
        }
    }
}

fn start_log(path: &std::path::Path) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening the log {}", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("KV_LOG")
        .unwrap_or_else(|_| DEFAULT_LOG_FILTER.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        // By default, tracing would report a failed write to the log on standard error, and panic if that fails too.
        .log_internal_errors(false)
        .with_writer(std::sync::Mutex::new(file))
        .init();
    Ok(())
}
