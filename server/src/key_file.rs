//! The cluster's key, which the process reads from a pipe or a file. Arguments and the environment would expose it to
//! other processes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use kv_protocol::ids::ClusterKey;

use crate::fatal::Fatal;

/// The maximum length of the first line: 32 hex digits, a carriage return and a line feed.
const MAX_LINE: usize = 34;

/// Reads the cluster's key from a file, or from standard input for `-`, which is then replaced by /dev/null. Without a
/// file, the key is zero.
///
/// # Errors
/// The file cannot be read, or its first line is not a key.
pub(crate) fn read(file: Option<&Path>) -> Result<ClusterKey, Fatal> {
    let Some(path) = file else { return Ok(ClusterKey::default()) };
    let failed = |error| Fatal::Key { path: path.to_owned(), error };
    let line = match path.to_str() {
        Some("-") => {
            let line = first_line(&mut io::stdin().lock()).map_err(failed)?;
            // The pipe may belong to an ssh connection, which stays open until every process has closed its end of the
            // pipe.
            let null = File::open("/dev/null").map_err(failed)?;
            rustix::stdio::dup2_stdin(&null).map_err(|error| failed(error.into()))?;
            line
        }
        _ => first_line(&mut File::open(path).map_err(failed)?).map_err(failed)?,
    };
    let text = String::from_utf8_lossy(&line);
    let no_key = || failed(io::Error::other("the first line is not a key of 32 hex digits"));
    match text.trim_end() {
        key if key.len() == 32 => key.parse().map_err(|_| no_key()),
        _ => Err(no_key()),
    }
}

/// Reads up to the first line feed, but no byte beyond it and at most [`MAX_LINE`] bytes. Returns the bytes before the
/// line feed.
fn first_line(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LINE && input.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_first_line_of_its_file_and_other_contents_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(Some(&path))
        };
        let digits = "00000000000000000000000000005ec1";
        for text in [digits.to_owned(), format!("{digits}\n"), format!("{digits}\r\nmore")] {
            assert_eq!(of(&text).unwrap(), ClusterKey(0x5ec1));
        }
        for text in ["", "\n", "5ec1", &format!("{digits}0"), &format!("{}x", &digits[1..])] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains("32 hex digits") && !error.contains("5ec1"), "{error}");
        }
        assert!(read(Some(&dir.path().join("none"))).is_err());
        assert_eq!(read(None).unwrap(), ClusterKey::default());
    }
}
