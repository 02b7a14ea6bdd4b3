//! The words of the command line, grouped, and the text of `help`.

use std::fmt::Write as _;

/// A word that begins a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) name: &'static str,
    group: &'static str,
    /// The syntax of the line, as in messages.
    pub(crate) form: &'static str,
    about: &'static str,
    /// The option words, for the completion.
    pub(crate) options: &'static [&'static str],
    /// The lines that only `help WORD` prints.
    more: &'static str,
}

pub(crate) const CONDITIONS: &[&str] = &["if-absent", "if-present", "if-version", "if-value"];
const PUT_OPTIONS: &[&str] = &[
    "if-absent",
    "if-present",
    "if-version",
    "if-value",
    "expires",
    "expires-at",
    "keep-expiry",
    "old",
];
const GET_OPTIONS: &[&str] = &["expires", "expires-at"];
const EXPIRE_OPTIONS: &[&str] = &["if-none", "if-any", "if-later", "if-earlier"];

const GROUPS: [&str; 7] =
    ["Read", "Write", "Numbers", "Expiry", "Several keys", "All keys", "Other"];

const CONDITION_TEXT: &str = "\
Conditions: if-absent, if-present, if-version N, if-value V.
If the condition does not hold, nothing is changed and the line fails.";
const EXPIRE_TEXT: &str = "\
Conditions on the deadline: if-none (it has none), if-any (it has one), if-later
and if-earlier (the new one is; no deadline is later than any).";
const RENAME_TEXT: &str = "\
The deadline goes with the entry. An entry of the new key is replaced.
Both keys must be of one group and shard; otherwise the line fails. With
coord --hash-tags, keys with the same {tag} are.";

/// All words, in the order of `help`.
pub(crate) const WORDS: [Word; 24] = [
    Word {
        name: "get",
        group: "Read",
        form: "get KEY [EXPIRY]",
        about: "get the value, and set the deadline",
        options: GET_OPTIONS,
        more: "EXPIRY is: expires SECONDS, or expires-at UNIX-MS.",
    },
    Word {
        name: "getrange",
        group: "Read",
        form: "getrange KEY FROM MOST",
        about: "get at most MOST bytes from byte FROM",
        options: &[],
        more: "Bytes count from 0. With FROM -3, the part begins 3 bytes before the end.",
    },
    Word {
        name: "length",
        group: "Read",
        form: "length KEY",
        about: "get the length of the value in bytes",
        options: &[],
        more: "",
    },
    Word {
        name: "exists",
        group: "Read",
        form: "exists KEY",
        about: "check that the key exists",
        options: &[],
        more: "",
    },
    Word {
        name: "put",
        group: "Write",
        form: "put KEY VALUE [CONDITION] [EXPIRY] [old]",
        about: "put the value under the key",
        options: PUT_OPTIONS,
        more: "\
EXPIRY is: expires SECONDS, expires-at UNIX-MS, or keep-expiry. Without it, the
entry has no deadline. With old, the output has the value before the put.
Conditions: if-absent, if-present, if-version N, if-value V.
If the condition does not hold, nothing is changed and the line fails.",
    },
    Word {
        name: "del",
        group: "Write",
        form: "del KEY [CONDITION]",
        about: "delete the key",
        options: CONDITIONS,
        more: CONDITION_TEXT,
    },
    Word {
        name: "take",
        group: "Write",
        form: "take KEY [CONDITION]",
        about: "get the value and delete the key",
        options: CONDITIONS,
        more: CONDITION_TEXT,
    },
    Word {
        name: "append",
        group: "Write",
        form: "append KEY VALUE",
        about: "append to the value",
        options: &[],
        more: "An absent key counts as an empty value. The output has the new length.",
    },
    Word {
        name: "setrange",
        group: "Write",
        form: "setrange KEY OFFSET VALUE",
        about: "overwrite a part of the value",
        options: &[],
        more: "A gap before the part is filled with zero bytes. The output has the new length.",
    },
    Word {
        name: "rename",
        group: "Write",
        form: "rename KEY NEW",
        about: "move the entry to another key",
        options: &[],
        more: RENAME_TEXT,
    },
    Word {
        name: "copy",
        group: "Write",
        form: "copy KEY NEW",
        about: "copy the entry to another key",
        options: &[],
        more: RENAME_TEXT,
    },
    Word {
        name: "incr",
        group: "Numbers",
        form: "incr KEY [N]",
        about: "add N (1) to the integer",
        options: &[],
        more: "An absent key counts as 0. Integers have 64 bits.",
    },
    Word {
        name: "decr",
        group: "Numbers",
        form: "decr KEY [N]",
        about: "subtract N (1) from the integer",
        options: &[],
        more: "An absent key counts as 0. Integers have 64 bits.",
    },
    Word {
        name: "incrfloat",
        group: "Numbers",
        form: "incrfloat KEY X",
        about: "add X to the number",
        options: &[],
        more: "An absent key counts as 0. X is a number such as -1.5 or 2e3.",
    },
    Word {
        name: "expire",
        group: "Expiry",
        form: "expire KEY SECONDS [CONDITION]",
        about: "let the entry expire after this time",
        options: EXPIRE_OPTIONS,
        more: EXPIRE_TEXT,
    },
    Word {
        name: "expire-at",
        group: "Expiry",
        form: "expire-at KEY UNIX-MS [CONDITION]",
        about: "let the entry expire at this time",
        options: EXPIRE_OPTIONS,
        more: "\
UNIX-MS is in milliseconds since 1970-01-01 00:00 UTC.
Conditions on the deadline: if-none (it has none), if-any (it has one), if-later
and if-earlier (the new one is; no deadline is later than any).",
    },
    Word {
        name: "persist",
        group: "Expiry",
        form: "persist KEY",
        about: "remove the deadline",
        options: &[],
        more: "",
    },
    Word {
        name: "ttl",
        group: "Expiry",
        form: "ttl KEY",
        about: "show the time left, by this clock",
        options: &[],
        more: "The deadline is compared with the clock of this machine.",
    },
    Word {
        name: "mget",
        group: "Several keys",
        form: "mget KEY ...",
        about: "get keys, one request each",
        options: &[],
        more: "Not atomic: another client may write between the requests.",
    },
    Word {
        name: "mput",
        group: "Several keys",
        form: "mput KEY VALUE ...",
        about: "put keys, one request each",
        options: &[],
        more: "Not atomic: if one put fails, the others are done. See batch.",
    },
    Word {
        name: "batch",
        group: "Several keys",
        form: "batch ITEM; ITEM; ...",
        about: "all of the items, or none",
        options: &[],
        more: "\
An ITEM is a line that begins with get, put, del, take, append, setrange,
rename, copy, incr, decr, incrfloat, expire, expire-at or persist, or it is
check KEY CONDITION.
All keys must be of one group and shard; otherwise the line fails. With
coord --hash-tags, keys with the same {tag} are.
An item whose condition does not hold, or that cannot be executed, ends the
batch: nothing is changed and the line fails. With the word optional at its end
it is skipped instead. A key that is not found ends the batch only if a
condition requires it; otherwise the other items are executed, and the line
succeeds.
A batch of one item is the line with that item.
Limits: 1,024 items, 32 of them incrfloat; 16 MiB + 256 KiB for the keys and
values that all items write; 16 MiB for the results.",
    },
    Word {
        name: "scan",
        group: "All keys",
        form: "scan [PATTERN] [values] [limit N]",
        about: "list the keys that match the pattern",
        options: &["values", "limit"],
        more: "\
In a PATTERN, * stands for any bytes, ? for one byte, [a-z] for one of these
bytes, [^a] for any other byte, and \\ is before a literal one (in quotes: \\\\).
Without it, all keys are listed. With values, each line has key and value.
Every key that exists from start to end comes once, in no particular order,
also if a server fails meanwhile. Keys that are written meanwhile may come.",
    },
    Word {
        name: "count",
        group: "All keys",
        form: "count",
        about: "count all keys of the cluster",
        options: &[],
        more: "The number is exact if no key is added or removed meanwhile.",
    },
    Word {
        name: "help",
        group: "Other",
        form: "help [WORD]",
        about: "show this, or more about a word",
        options: &[],
        more: "",
    },
];

/// The letters, which have the same form in every version.
const LETTERS: &str = r#"P "<key>" "<value>" [count]   put the value under the key (count times)
G "<key>"                     get the key's value
D "<key>"                     delete the key
V "<key>" "<expected>"        check that both copies of the key hold this value
V "<key>" absent              check that the key exists in neither copy
                              (so does " "; a value of one blank is "\x20")
0 "<key>"                     check that the key's server responds"#;

const NOTES: &str = r#"Escapes inside quotes: \" \\ \n \r \t \0, and \xHH for any byte in hexadecimal.
After a word, a KEY or VALUE without blanks " \ ; needs no quotes.
Empty lines and lines starting with # are ignored.
Ctrl+D ends the client; at the prompt quit does too."#;

/// Returns the word with this name.
pub(crate) fn word(name: &[u8]) -> Option<&'static Word> {
    WORDS.iter().find(|word| word.name.as_bytes() == name)
}

/// Returns the text of `help`, or of `help WORD`, without the last line end.
pub(crate) fn text(word: Option<&Word>) -> String {
    if let Some(Word { form, about, more, .. }) = word {
        let gap = if more.is_empty() { "" } else { "\n" };
        return format!("{form}\n{about}{gap}{more}");
    }
    let mut text = LETTERS.to_owned();
    for group in GROUPS {
        let _ = write!(text, "\n\n{group}:");
        for Word { form, about, .. } in WORDS.iter().filter(|word| word.group == group) {
            let _ = write!(text, "\n{form:<42}{about}");
        }
    }
    text + "\n\n" + NOTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_terminal_of_80_columns() {
        let more = WORDS.iter().map(|word| text(Some(word)));
        for line in more
            .chain([text(None)])
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn every_word_is_in_a_group_and_begins_its_form() {
        let all = text(None);
        for word in WORDS {
            assert!(word.form.starts_with(word.name), "{}", word.form);
            assert!(all.contains(&format!("\n{}", word.form)), "{}", word.form);
        }
    }
}
