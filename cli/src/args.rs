//! The command line flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use kv_client::is_deadline;
use kv_protocol::unix::UNIX_PREFIX;

/// The name that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Puts keys into a cluster and gets them back.
///
/// Reads operations from a terminal, a pipe or a file, one per line: P "key" "value", G "key", D "key", V "key"
/// "expected" (or V "key" absent), 0 "key", or a word such as put, get, incr, expire or batch with its arguments. The
/// line help lists all of them. Results go to standard output, one line per key, in the order of the lines. Errors go
/// to standard error, with the line number unless a single line was typed at the prompt. The result of a write ends
/// with "(1 copy)" if only one server holds it. Lines that are pasted at the prompt run in order when Enter is pressed.
///
/// A line that gets no response fails after --timeout. If the line is a write that may have been done, the client then
/// settles the write, for up to half of the timeout, and reports whether it was done. Lines that have waited for this
/// line for the whole timeout fail too, and are reported as not tried. Lines that are read later are tried.
///
/// Exit status: 0 if every operation succeeded, 1 if one failed (including a read of a missing key, a V whose check
/// fails, and a condition that does not hold) or the client could not continue, 2 for wrong usage. At the prompt,
/// failed operations do not change the status.
#[derive(Debug, clap::Parser)]
#[command(name = "client", version, disable_help_flag = true)]
pub(super) struct Args {
    /// Host of the coordinator, or of any server while the coordinator is down. Several may be given (-h A -h B or
    /// -h A,B), each with its own port (-h A:7000,B:7001); the first that responds is used. unix:DIR stands for the servers whose
    /// Unix-domain sockets are in this directory (coord --unix); each server is then reached by its socket if it has one
    /// there, and else by TCP.
    #[arg(
        short = 'h',
        long = "host",
        value_name = "HOST",
        default_value = "localhost",
        value_delimiter = ','
    )]
    hosts: Vec<String>,
    /// Clients port of every host that is given without a port.
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Read operations from this file instead of the terminal; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Append a log of connection events to this file; the environment variable KV_LOG sets the level (error, warn,
    /// info, debug).
    #[arg(short, long, value_name = "FILE")]
    pub(super) log: Option<PathBuf>,
    /// Timeout of one operation with all its retries, in seconds: 0.001 to 60.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Print this help (-h is the host).
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// The source of the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// The terminal with a prompt, if standard input and standard output are terminals; else standard input.
    Unnamed,
    StandardInput,
    File(&'a Path),
}

impl Args {
    /// Parses a command line that begins with the program's name.
    ///
    /// # Errors
    /// The command line is invalid, or requests --help or --version.
    pub(super) fn read(
        line: impl IntoIterator<Item: Into<OsString> + Clone>,
    ) -> clap::error::Result<Args> {
        let args = Args::try_parse_from(line)?;
        let usage = |reason| Args::command().error(ErrorKind::ValueValidation, reason);
        args.endpoints().map_err(usage)?;
        Ok(args)
    }

    /// Returns the endpoints in the form that the library parses.
    ///
    /// # Errors
    /// A host has no port or an invalid one.
    pub(super) fn endpoints(&self) -> Result<String, String> {
        let endpoints: Result<Vec<String>, String> =
            self.hosts.iter().map(|host| endpoint(host, self.port)).collect();
        Ok(endpoints?.join(","))
    }

    pub(super) fn source(&self) -> Source<'_> {
        match &self.file {
            None => Source::Unnamed,
            Some(path) if path == Path::new(STANDARD_INPUT) => Source::StandardInput,
            Some(path) => Source::File(path),
        }
    }
}

/// Formats `host:port`, with the port of `host` or else `port`. A directory of sockets, `unix:DIR`, has no port.
fn endpoint(host: &str, port: Option<u16>) -> Result<String, String> {
    if host.starts_with(UNIX_PREFIX) {
        return Ok(host.to_owned());
    }
    // A bare IPv6 address needs brackets: its last colon would separate the port.
    let is_bare_ipv6 = !host.starts_with('[') && host.matches(':').count() > 1;
    let bracketed = if is_bare_ipv6 { format!("[{host}]") } else { host.to_owned() };
    let own = bracketed.rsplit_once(':').map(|(_, own)| own).filter(|own| !own.ends_with(']'));
    match (own, port) {
        (Some(own), _) if own.parse::<u16>().is_ok_and(|port| port > 0) => Ok(bracketed),
        (Some(own), _) => Err(format!(
            "\"{own}\" in the host \"{host}\" is not a port; write one from 1 to 65535"
        )),
        (None, Some(port)) => Ok(format!("{bracketed}:{port}")),
        (None, None) => Err(format!(
            "the host \"{host}\" has no port; give the coordinator's port for clients with -p, or write -h {bracketed}:PORT"
        )),
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

    fn read(line: &str) -> clap::error::Result<Args> {
        Args::read(line.split(' '))
    }

    #[test]
    fn flags_are_those_of_the_manual() {
        let args = read("client -h example.org -p 7000 -f ops -l log --timeout 0.25").unwrap();
        assert_eq!(args.endpoints().unwrap(), "example.org:7000");
        assert_eq!(args.timeout, Duration::from_millis(250));
        assert_eq!(args.source(), Source::File(Path::new("ops")));
        assert_eq!(args.log, Some("log".into()));
        assert_eq!(read("client -p 1").unwrap().source(), Source::Unnamed);
        assert_eq!(read("client -p 1 -f -").unwrap().source(), Source::StandardInput);
    }

    #[test]
    fn several_hosts_may_have_their_own_ports_and_be_ipv6() {
        for (line, endpoints) in [
            ("-p 7000", "localhost:7000"),
            ("--host ::1 --port 7000", "[::1]:7000"),
            ("-h [::1] -p 7000", "[::1]:7000"),
            ("-h [::1]:7001 -p 7000", "[::1]:7001"),
            ("-h a -h b -p 7000", "a:7000,b:7000"),
            ("-h a:1,b:2", "a:1,b:2"),
            ("-h a:1 -h b,::2 -p 3", "a:1,b:3,[::2]:3"),
            ("-h unix:/run/kv", "unix:/run/kv"),
            ("-h unix:/run/kv,a -p 3", "unix:/run/kv,a:3"),
        ] {
            let args = read(&format!("client {line}")).expect(line);
            assert_eq!(args.endpoints().unwrap(), endpoints, "{line}");
        }
    }

    #[test]
    fn invalid_flags_are_a_usage_error() {
        for bad in [
            "client",
            "client -p 0",
            "client -p 65536",
            "client -p 1 --timeout 0",
            "client -p 1 --timeout 61",
            "client -p 1 --timeout inf",
            "client -p 1 extra",
            "client -h a:1,b",
            "client -h a:0",
            "client -h a:b -p 1",
            "client -h a: -p 1",
            "client -h [::1]",
        ] {
            let error = read(bad).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
        let text = read("client -h a:1,b").unwrap_err().to_string();
        assert!(text.contains("host \"b\" has no port") && text.contains("-h b:PORT"), "{text}");
        let help = read("client --help").unwrap_err();
        assert_eq!(help.exit_code(), 0);
    }
}
