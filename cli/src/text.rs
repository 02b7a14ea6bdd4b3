//! Texts that several kinds of output have in common.

use std::fmt::Write as _;

use kv_protocol::escape::readable;

/// Returns a text such as `value["k"] == "v"`. It is formatted into one string, because values can be long.
pub(super) fn says(key: &[u8], relation: &str, value: &[u8]) -> String {
    let mut text = String::with_capacity(key.len() + value.len() + 16);
    write!(text, "value[\"{}\"] {relation} \"{}\"", readable(key), readable(value))
        .expect("a string takes everything");
    text
}

pub(super) fn not_found(key: &[u8]) -> String {
    format!("key \"{}\" not found", readable(key))
}
