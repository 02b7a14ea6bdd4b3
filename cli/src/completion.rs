//! The completion of words at the prompt, with the tabulator.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::help::{CONDITIONS, WORDS, Word, word};
use super::words::ITEMS;

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

/// The options that an argument follows.
const WITH_ARGUMENT: [&str; 5] = ["if-version", "if-value", "expires", "expires-at", "limit"];

/// Returns the start of the word at this position, and the words that it may become.
fn candidates(line: &str, position: usize) -> (usize, Vec<String>) {
    let before = &line[..position];
    let Some((words, start)) = split(before) else { return (position, Vec::new()) };
    let begun = &before[start..];
    let fitting = following(&words).into_iter().filter(|word| word.starts_with(begun));
    (start, fitting.map(|word| format!("{word} ")).collect())
}

/// Divides a line into its words, and returns the start of the word that is begun. An unquoted semicolon is a word.
/// Returns `None` inside quotes.
fn split(line: &str) -> Option<(Vec<&str>, usize)> {
    let (mut words, mut start) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, char) in line.char_indices() {
        let is_end = match char {
            _ if is_escaped => {
                is_escaped = false;
                continue;
            }
            '\\' if is_quoted => {
                is_escaped = true;
                continue;
            }
            '"' => {
                is_quoted = !is_quoted;
                !is_quoted
            }
            ' ' | '\t' | ';' if !is_quoted => false,
            _ => continue,
        };
        // A closing quote belongs to the word that it ends; any other separator follows the word.
        let end = if is_end { at + 1 } else { at };
        if start < end {
            words.push(&line[start..end]);
        }
        if char == ';' {
            words.push(";");
        }
        start = if char == '"' { end } else { at + 1 };
    }
    (!is_quoted).then_some((words, start))
}

/// Returns the words that may follow these.
fn following(words: &[&str]) -> Vec<&'static str> {
    match words {
        [] | ["help"] => WORDS.iter().map(|word| word.name).collect(),
        ["batch", items @ ..] => match items.rsplit(|&word| word == ";").next() {
            None | Some([]) => ITEMS.to_vec(),
            Some([name, arguments @ ..]) => {
                let is_incomplete = *name == "check" && arguments.len() < 2;
                let mut known = options(name, arguments);
                if let Some(known) = known.as_mut().filter(|_| !is_incomplete) {
                    known.push("optional");
                }
                known.unwrap_or_default()
            }
        },
        [name, arguments @ ..] if !words.contains(&";") => {
            options(name, arguments).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// Returns the options that may follow the arguments of a word; `None` if another argument must follow.
fn options(name: &str, arguments: &[&str]) -> Option<Vec<&'static str>> {
    let (required, options) = match (name, word(name.as_bytes())) {
        ("check", _) => (1, CONDITIONS),
        (_, Some(Word { form, options, .. })) => {
            let is_required = |part: &&str| !part.starts_with('[');
            (form.split_whitespace().skip(1).take_while(is_required).count(), *options)
        }
        (_, None) => return None,
    };
    let is_argument = arguments.last().is_some_and(|last| WITH_ARGUMENT.contains(last));
    (arguments.len() >= required && !is_argument).then(|| options.to_vec())
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
        assert_eq!(completed("batch put a 1 opt"), "14:optional");
        assert_eq!(completed("batch incr a; put \"b;c\" 1 opt"), "26:optional");
        assert_eq!(completed("batch append a b "), "17:optional");
        assert_eq!(completed("batch ch"), "6:check");
        assert_eq!(completed("batch check a if-p"), "14:if-present");
        assert_eq!(completed("batch check a opt"), "14:");
        assert_eq!(completed("batch check a if-absent opt"), "24:optional");
        assert_eq!(completed("sc"), "0:scan");
        assert_eq!(completed("scan va"), "5:values");
        assert_eq!(completed("scan limit 3 va"), "13:values");
        assert_eq!(completed("scan k* v"), "8:values");
    }

    #[test]
    fn a_batch_completes_only_its_items() {
        let (_, words) = candidates("batch ", 6);
        let words: Vec<&str> = words.iter().map(|word| word.trim_end()).collect();
        assert_eq!(words, ITEMS);
        for begun in ["tt", "mg", "le", "sc", "ba", "hel"] {
            assert_eq!(completed(&format!("batch {begun}")), "6:", "{begun}");
            assert_eq!(completed(&format!("batch incr a; {begun}")), "14:", "{begun}");
        }
        assert_eq!(completed("put k v; ge"), "9:");
        assert_eq!(completed("put k v opt"), "8:");
    }

    #[test]
    fn keys_and_quoted_strings_are_not_completed() {
        assert_eq!(completed("put i"), "4:");
        assert_eq!(completed("G \"ge"), "5:");
        assert_eq!(completed("P \"a\" \"b\" i"), "10:");
        assert_eq!(completed("put \"put; ge"), "12:");
        assert_eq!(completed("put \"a\\\" \\\\\" v o"), "15:old");
        assert_eq!(completed("put k i"), "6:");
        assert_eq!(completed("put k v if-value o"), "17:");
        assert_eq!(completed("batch rename a o"), "15:");
        assert_eq!(completed("scan limit v"), "11:");
    }
}
