//! `coord stop`: has a running coordinator stop its cluster, prints what it says meanwhile, and ends as the stop
//! ends.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;

use crate::Failure;
use crate::args::StopArgs;
use crate::spawn::printable;
use crate::stop_port::{Line, Request, path_in};

/// Asks, and waits for the end.
pub(crate) fn run(args: &StopArgs) -> Result<(), Failure> {
    let dir = args.dir.display();
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                "no coordinator runs there; give the directory of the cluster with --dir. Servers that have \
                 outlived their coordinator dump their tables and exit on SIGTERM"
                    .to_owned()
            }
            _ => error.to_string(),
        };
        Failure::Failed(format!("ask the coordinator in {dir} to stop: {reason}"))
    };
    let directory = File::open(&args.dir).map_err(failed)?;
    let mut stream = UnixStream::connect(path_in(&directory)).map_err(failed)?;
    let request = Request { dump_dir: args.dump_dir.clone(), force: args.force };
    let mut text = serde_json::to_string(&request)
        .map_err(|error| Failure::Failed(format!("write the request: {error}")))?;
    text.push('\n');
    stream.write_all(text.as_bytes()).map_err(failed)?;
    for line in BufReader::new(stream).lines() {
        let line: Line = serde_json::from_str(&line.map_err(failed)?)
            .map_err(|error| Failure::Failed(format!("read the coordinator's words: {error}")))?;
        if line.ended == Some(false) {
            return Err(Failure::Failed(printable_lines(&line.say)));
        }
        // A closed standard output is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{}", printable_lines(&line.say));
        if line.ended.is_some() {
            return Ok(());
        }
    }
    Err(Failure::Failed(format!(
        "the coordinator in {dir} has ended before it said how the stop went; see its log"
    )))
}

/// Nothing that a terminal obeys, but the ends of lines.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}
