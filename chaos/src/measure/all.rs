//! The subcommand that runs every measurement, one after the other.

use clap::Parser;
use indicatif::ProgressBar;

use super::figures::Figures;
use super::{What, measure};
use crate::cluster::Programs;

/// The measurements, as arguments of `chaos measure`.
const ALL: [&str; 11] = [
    "failover --data 64M --kills 20",
    "failover --data 2G --kills 20",
    "failover --hang --data 64M --kills 20",
    "failover --ssh --data 64M --kills 5",
    "copy --data 1G",
    "coordinator --seconds 60",
    "many --servers 32 --kills 10",
    "expiries",
    "overload --seconds 60",
    "floods --seconds 20",
    "floods --seconds 20 --net epoll",
];
/// The same measurements, at sizes that only test whether they work.
const SMALL: [&str; 11] = [
    "failover --data 16M --kills 3",
    "failover --data 300M --kills 1",
    "failover --hang --data 16M --kills 2",
    "failover --ssh --data 16M --kills 2",
    "copy --data 256M --before 3",
    "coordinator --seconds 5",
    "many --servers 8 --kills 2 --idle 5",
    "expiries --entries 100000 --rate 40000 --fill 10",
    "overload --seconds 3",
    "floods --quick --seconds 2",
    "floods --quick --seconds 2 --net epoll",
];

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct AllArgs {
    /// Run each measurement at a size that only tests whether it works. The figures are not meaningful.
    #[arg(long)]
    small: bool,
}

/// The command line of one measurement.
#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    what: What,
}

/// Runs all measurements. A measurement that fails counts as a missed target, and the others still run.
pub(super) fn run(args: &AllArgs, programs: &Programs, progress: &ProgressBar) -> Vec<Figures> {
    let lines = if args.small { SMALL } else { ALL };
    let measured = (1..).zip(lines).map(|(number, line)| {
        progress.set_message(format!("{number} of {}: chaos measure {line}", lines.len()));
        parse(line)
            .and_then(|what| measure(&what, programs, progress))
            .unwrap_or_else(|error| Figures::failed(line.to_owned(), format!("{error:#}")))
    });
    measured.collect()
}

fn parse(line: &str) -> anyhow::Result<What> {
    let words = ["measure"].into_iter().chain(line.split(' '));
    Ok(Line::try_parse_from(words)?.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_parses_as_a_single_measurement() {
        for line in ALL.iter().chain(&SMALL) {
            assert!(!matches!(parse(line), Err(_) | Ok(What::All(_))), "{line}");
        }
    }
}
