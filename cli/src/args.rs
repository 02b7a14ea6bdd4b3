//! The flags.

use std::path::PathBuf;
use std::time::Duration;

use kv_client::is_deadline;

/// Puts keys into a cluster and gets them back.
///
/// Operations are read from a terminal, a pipe or a file, one a line: P "key" "value", G "key",
/// D "key", V "key" "expected", 0 "key", help. Answers go to standard output, one line an operation, in
/// the order of the lines; errors go to standard error, with the number of the line
/// where no person has just typed it.
///
/// Exit status: 0 if everything was done (on a terminal: always), 1 if something failed (a key that
/// is not found fails a G), 2 for wrong usage.
#[derive(Debug, clap::Parser)]
#[command(name = "client", version, disable_help_flag = true)]
pub(super) struct Args {
    /// The host of the coordinator, or, while it is away, of any server.
    #[arg(short = 'h', long, value_name = "HOST", default_value = "localhost")]
    host: String,
    /// Its port for clients.
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Read the operations from this file instead of standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Append what happens to connections to this file; the environment variable KV_LOG chooses how
    /// much (error, warn, info, debug).
    #[arg(short, long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// How long one operation may take with all its retries, in seconds; up to 60, fractions
    /// allowed.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Print this help (-h is the host).
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Args {
    /// The coordinator's address as the library takes it.
    pub(super) fn endpoint(&self) -> String {
        let Args { host, port, .. } = self;
        // A bare IPv6 address needs brackets, or its last colon would be taken for the port's.
        if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|&duration| is_deadline(duration))
        .ok_or_else(|| "it must be a number of seconds from 0.001 to 60".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn flags_are_those_of_the_manual() {
        let args = Args::try_parse_from(
            "client -h example.org -p 7000 -f ops -l log --timeout 0.25".split(' '),
        )
        .unwrap();
        assert_eq!(args.endpoint(), "example.org:7000");
        assert_eq!(args.timeout, Duration::from_millis(250));
        assert_eq!((args.file, args.log), (Some("ops".into()), Some("log".into())));
        let args = Args::try_parse_from("client --host ::1 --port 7000".split(' ')).unwrap();
        assert_eq!(args.endpoint(), "[::1]:7000");
    }

    #[test]
    fn bad_flags_are_wrong_usage() {
        for bad in [
            "client",
            "client -p 0",
            "client -p 65536",
            "client -p 1 --timeout 0",
            "client -p 1 --timeout 61",
            "client -p 1 --timeout inf",
            "client -p 1 extra",
        ] {
            let error = Args::try_parse_from(bad.split(' ')).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
        let help = Args::try_parse_from(["client", "--help"]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
    }
}
