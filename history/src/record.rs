//! One line of a history: the beginning or the end of an operation, as JSON.
//!
//! ```text
//!   {"process":7,"type":"invoke","f":"cas","key":"h3.91","value":[41,57],"time_ns":120}
//!   {"process":7,"type":"ok","f":"cas","key":"h3.91","value":[41,57],"time_ns":140,"version":9}
//! ```
//!
//! All processes share one clock. `ok` means done, `fail` not done, and `info` unknown; after `info` the process
//! number is never used again. The value of a delete, and of an absent key, is null. Two fields are optional and
//! not part of the format that other checkers read. They are the version in the response, and the reason why an
//! operation failed or its result is unknown.

use serde::{Deserialize, Serialize};

use crate::register::Value;

/// The kind of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An operation begins.
    Invoke,
    /// The operation was done.
    Ok,
    /// The operation was not done.
    Fail,
    /// The operation may or may not have been done.
    Info,
}

/// The requested operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Reads the value.
    Read,
    /// Writes a value.
    Write,
    /// Deletes the key.
    Delete,
    /// Writes a value if the current value is the expected one (compare-and-swap).
    Cas,
}

/// The values of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// The expected and the new value of a `cas`.
    Pair([Option<Value>; 2]),
    /// The value written or read; null if absent.
    One(Option<Value>),
}

/// The reason why an operation failed or its result is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The key did not have the value that the `cas` expected. The store evaluated the condition, so this is an
    /// observation.
    Conflict,
    /// The key of a delete does not exist. This is an observation too.
    NotFound,
    /// No replica of the key's group is left.
    Lost,
    /// No replica could serve the operation before the deadline; nothing was done.
    Unavailable,
    /// No response before the deadline.
    Timeout,
    /// The operation was sent, but has no definite response.
    InDoubt,
    /// The operation ended in doubt and was then settled: it was not done and never will be.
    NotDone,
    /// The operation was rejected for another reason.
    Refused,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process that performs the operation. A process has one operation in flight at a time.
    pub process: u32,
    /// The kind of this line.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The requested operation.
    pub f: Function,
    /// The key.
    pub key: String,
    /// The values.
    pub value: Payload,
    /// The time on the shared clock, in nanoseconds.
    pub time_ns: i64,
    /// The version in the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The reason why the operation failed or its result is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Reason>,
}

/// A line that is not a valid history record.
#[derive(Debug, thiserror::Error)]
#[error("cannot parse line {line} of the history: {reason}; was the file truncated or edited?")]
pub struct RecordError {
    /// The line number, counted from 1.
    pub line: usize,
    /// The parse error.
    pub reason: serde_json::Error,
}

impl Record {
    /// Parses all lines of a history.
    ///
    /// # Errors
    /// [`RecordError`] for the first invalid line.
    pub fn parse_all(text: &str) -> Result<Vec<Record>, RecordError> {
        let parse = |(at, line)| {
            serde_json::from_str(line).map_err(|reason| RecordError { line: at + 1, reason })
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// Serializes the record as one line, without the newline.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("the keys of a record are strings")
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
    fn an_absent_value_is_null() {
        let line = r#"{"process":1,"type":"fail","f":"delete","key":"k","value":null,"time_ns":1,"error":"not-found"}"#;
        let found = Record::parse_all(line).unwrap();
        assert_eq!(found[0].value, Payload::One(None));
        assert_eq!(found[0].error, Some(Reason::NotFound));
        assert_eq!(found[0].to_line(), line);
    }

    #[test]
    fn a_truncated_line_is_reported_with_its_number() {
        let text = "{\"process\":1,\"type\":\"ok\",\"f\":\"read\",\"key\":\"k\",\"value\":3,\"time_ns\":1}\n{\"proc";
        assert_eq!(Record::parse_all(text).unwrap_err().line, 2);
    }
}
