//! The completion of words at the prompt, with the tabulator.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::help::{WORDS, word};

/// Completes the words and the options of a line.
#[derive(Debug)]
pub(super) struct Words;

impl Helper for Words {}
impl Highlighter for Words {}
impl Validator for Words {}

impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(candidates(line, position))
    }
}

/// Returns the start of the word at this position, and the words that it may become.
fn candidates(line: &str, position: usize) -> (usize, Vec<String>) {
    let before = &line[..position];
    let is_quoted = before.matches('"').count() % 2 == 1;
    let start = before.rfind([' ', '\t', ';', '"']).map_or(0, |at| at + 1);
    let begun = &before[start..];
    if is_quoted {
        return (position, Vec::new());
    }
    let item = before.rfind(';').map_or(before, |at| &before[at + 1..]);
    let mut words = item[..item.len() - begun.len()].split_whitespace();
    let names = || WORDS.iter().map(|word| word.name).collect::<Vec<_>>();
    let known: Vec<&str> = match (words.next(), words.next()) {
        (None, _) | (Some("help"), None) => names(),
        (Some("batch"), None) => names(),
        (Some("batch"), Some(name)) | (Some(name), Some(_)) => {
            word(name.as_bytes()).map_or(Vec::new(), |word| word.options.to_vec())
        }
        (Some(_), None) => Vec::new(),
    };
    let fitting = known.into_iter().filter(|word| word.starts_with(begun));
    (start, fitting.map(|word| format!("{word} ")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(line: &str) -> String {
        let (start, candidates) = candidates(line, line.len());
        let words: Vec<&str> = candidates.iter().map(|word| word.trim_end()).collect();
        format!("{start}:{}", words.join(","))
    }

    #[test]
    fn words_and_options_are_completed_where_they_may_stand() {
        assert_eq!(completed("ge"), "0:get,getrange");
        assert_eq!(completed("  ex"), "2:exists,expire,expire-at");
        assert_eq!(completed("help pe"), "5:persist");
        assert_eq!(completed("batch inc"), "6:incr,incrfloat");
        assert_eq!(completed("batch incr a; ap"), "14:append");
        assert_eq!(completed("put k v if-v"), "8:if-version,if-value");
        assert_eq!(completed("put k v expires 5 o"), "18:old");
        assert_eq!(completed("batch put k v ke"), "14:keep-expiry");
        assert_eq!(completed("expire k 5 if-l"), "11:if-later");
        assert_eq!(completed("sc"), "0:scan");
        assert_eq!(completed("scan k* v"), "8:values");
    }

    #[test]
    fn keys_and_quoted_strings_are_not_completed() {
        assert_eq!(completed("put i"), "4:");
        assert_eq!(completed("G \"ge"), "5:");
        assert_eq!(completed("P \"a\" \"b\" i"), "10:");
        assert_eq!(completed("put \"put; ge"), "12:");
    }
}
