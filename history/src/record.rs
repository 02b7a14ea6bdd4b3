//! One line of a history: the beginning or the end of an operation, as JSON.
//!
//! ```text
//!   {"process":7,"type":"invoke","f":"cas","key":"h3.91","value":[41,57],"time_ns":120}
//!   {"process":7,"type":"ok","f":"cas","key":"h3.91","value":[41,57],"time_ns":140,"version":9}
//! ```
//!
//! One clock for all processes. `ok`: done; `fail`: not done; `info`: nobody knows, and the process
//! number is not used again. The value of a delete, and of a key that is absent, is null. Two fields may
//! be missing and are no part of the format that other checkers read: the version that an answer named,
//! and why an operation failed.

use serde::{Deserialize, Serialize};

use crate::register::Value;

/// What a line tells of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It begins.
    Invoke,
    /// It was done.
    Ok,
    /// It was not done.
    Fail,
    /// It may have been done or not.
    Info,
}

/// What is asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Its value.
    Read,
    /// To have another.
    Write,
    /// To be gone.
    Delete,
    /// To have another if it has this one.
    Cas,
}

/// The values of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// Old and new, of a `cas`.
    Pair([Option<Value>; 2]),
    /// What is written or was read; null for what is absent.
    One(Option<Value>),
}

/// Why an operation failed, or why its end is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The key had not the value that the `cas` demanded. The store has looked, so this says something.
    Conflict,
    /// A delete found nothing. This says something too.
    NotFound,
    /// No holder of the key's group is left.
    Lost,
    /// Nothing was done before the deadline.
    Unavailable,
    /// No answer before the deadline.
    Timeout,
    /// Sent, and no definite answer.
    InDoubt,
    /// It ended in doubt, and was settled: it was not done, and never will be.
    NotDone,
    /// Refused for another reason.
    Refused,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who: does one operation after the other.
    pub process: u32,
    /// What this line tells.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What is asked.
    pub f: Function,
    /// Of which key.
    pub key: String,
    /// With which values.
    pub value: Payload,
    /// When, by the one clock.
    pub time_ns: i64,
    /// The version that the answer named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// A line that is none of a history.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the history: {reason}; was the file cut or edited?")]
pub struct RecordError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: serde_json::Error,
}

impl Record {
    /// Reads all lines of a history.
    ///
    /// # Errors
    /// [`RecordError`] for the first line that is none.
    pub fn parse_all(text: &str) -> Result<Vec<Record>, RecordError> {
        let parse = |(at, line)| {
            serde_json::from_str(line).map_err(|reason| RecordError { line: at + 1, reason })
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// The line, without its end.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a record has only names for keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_that_other_checkers_read() {
        let record = Record {
            process: 7,
            kind: Kind::Invoke,
            f: Function::Cas,
            key: "k".into(),
            value: Payload::Pair([None, Some(57)]),
            time_ns: 120,
            version: None,
            error: None,
        };
        let line =
            r#"{"process":7,"type":"invoke","f":"cas","key":"k","value":[null,57],"time_ns":120}"#;
        assert_eq!(record.to_line(), line);
        assert_eq!(Record::parse_all(line).unwrap(), [record]);
    }

    #[test]
    fn what_is_absent_is_null() {
        let line = r#"{"process":1,"type":"fail","f":"delete","key":"k","value":null,"time_ns":1,"error":"not-found"}"#;
        let found = Record::parse_all(line).unwrap();
        assert_eq!(found[0].value, Payload::One(None));
        assert_eq!(found[0].error, Some(Reason::NotFound));
        assert_eq!(found[0].to_line(), line);
    }

    #[test]
    fn a_line_that_was_cut_is_named() {
        let text = "{\"process\":1,\"type\":\"ok\",\"f\":\"read\",\"key\":\"k\",\"value\":3,\"time_ns\":1}\n{\"proc";
        assert_eq!(Record::parse_all(text).unwrap_err().line, 2);
    }
}
