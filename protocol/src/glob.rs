//! Patterns of keys, with the semantics of Redis (`stringmatchlen` in `src/util.c`, version 7.2).
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any bytes, also none |
//! | `?` | one byte |
//! | `[abc]`, `[a-z]` | one byte of the set |
//! | `[^a]` | one byte outside of the set |
//! | `\x` | the byte `x`, also in a set |
//!
//! A set without `]` extends to the end of the pattern. A range with its ends exchanged is the same range. Bytes are
//! unsigned, as on the platforms where `char` is unsigned. Redis gives up after 1,000 stars; this code does not.
//!
//! A match may take time proportional to the product of the lengths of pattern and text. So it has a budget of steps,
//! and its result may be unknown.

/// The number of steps that a match may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps(pub usize);

impl Steps {
    /// Enough steps for every pattern and key.
    pub const UNLIMITED: Steps = Steps(usize::MAX);

    fn take(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.checked_sub(count)?;
        Some(())
    }
}

/// Returns whether a text matches a pattern, or `None` if that is unknown after all steps. Reduces the steps by those
/// that were taken.
pub fn matches(pattern: &[u8], text: &[u8], steps: &mut Steps) -> Option<bool> {
    if text.is_empty() {
        // Redis reads no pattern if there is no text, so `*` does not match it. Keys are never empty.
        return Some(pattern.is_empty());
    }
    let (mut rest, mut at) = (pattern, 0);
    // The pattern after the last star, and the offset in the text of the first byte that the star does not cover. If
    // the rest of the text does not match, only the last star needs to cover more.
    let mut star: Option<(&[u8], usize)> = None;
    while let Some(&byte) = text.get(at) {
        if let [b'*', after @ ..] = rest {
            steps.take(1)?;
            rest = after;
            star = Some((after, at));
            if after.is_empty() {
                return Some(true);
            }
            continue;
        }
        let (is_match, length) = match_one(rest, byte);
        steps.take(1 + length)?;
        if is_match {
            (rest, at) = (&rest[length..], at + 1);
        } else if let Some((after, covered)) = &mut star {
            *covered += 1;
            (rest, at) = (*after, *covered);
        } else {
            return Some(false);
        }
    }
    Some(rest.iter().all(|&byte| byte == b'*'))
}

/// Returns whether a byte matches the first element of a pattern that does not begin with a star, and the length of
/// that element.
fn match_one(pattern: &[u8], byte: u8) -> (bool, usize) {
    match pattern {
        [] => (false, 0),
        [b'?', ..] => (true, 1),
        [b'\\', escaped, ..] => (*escaped == byte, 2),
        [b'[', set @ ..] => {
            let (is_match, length) = match_set(set, byte);
            (is_match, 1 + length)
        }
        [literal, ..] => (*literal == byte, 1),
    }
}

/// Returns whether a byte matches a set, and the length of the set after its `[`.
fn match_set(set: &[u8], byte: u8) -> (bool, usize) {
    let (is_negated, mut rest) = match set {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut is_in = false;
    loop {
        match rest {
            [] => break,
            [b'\\', escaped, after @ ..] => {
                is_in |= *escaped == byte;
                rest = after;
            }
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [first, b'-', last, after @ ..] => {
                is_in |= (*first.min(last)..=*first.max(last)).contains(&byte);
                rest = after;
            }
            [literal, after @ ..] => {
                is_in |= *literal == byte;
                rest = after;
            }
        }
    }
    (is_in != is_negated, set.len() - rest.len())
}

/// Returns the pattern that matches exactly the keys with a prefix, including the prefix itself.
pub fn of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b'\\') {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_match(pattern: &[u8], text: &[u8]) -> bool {
        matches(pattern, text, &mut Steps::UNLIMITED.clone()).unwrap()
    }

    /// Cases with the results of Redis 7.2, by its source.
    #[test]
    fn patterns_match_like_those_of_redis() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("*", &["a", "abc", "*"], &[""]),
            ("", &[""], &["a"]),
            ("**", &["a", "ab"], &[""]),
            ("?", &["a", "?"], &["ab", ""]),
            ("h?llo", &["hello", "hallo", "h?llo"], &["hllo", "heello"]),
            ("h*llo", &["hllo", "heeeello", "hllollo"], &["hell", "xhllo"]),
            ("a*", &["a", "ab"], &["ba"]),
            ("a**", &["a", "ab"], &["ba"]),
            ("*a", &["a", "ba", "aa", "aba"], &["ab"]),
            ("*a*", &["a", "xax"], &["b"]),
            ("*ab*cd*", &["abcd", "xabxcdx", "aabccd"], &["abc", "cdab"]),
            ("*a?", &["ab", "aab", "aaa"], &["a", "b"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo", "h[llo"]),
            ("h[^e]llo", &["hallo", "hbllo"], &["hello"]),
            ("h[a-b]llo", &["hallo", "hbllo"], &["hcllo", "h-llo"]),
            ("h[b-a]llo", &["hallo", "hbllo"], &["hcllo"]),
            ("[a-]", &["a", "]", "^", "_"], &["-", "b"]),
            ("[a-", &["a", "-"], &["b"]),
            ("[-a]", &["-", "a"], &["b"]),
            ("[a", &["a"], &["b", "[a"]),
            ("[", &[], &["[", "a"]),
            ("[^", &["a", "^"], &["ab"]),
            ("[]", &[], &["]", "[]"]),
            ("[^]", &["a", "]"], &["[^]"]),
            ("[]a]", &[], &["a]", "]a]"]),
            ("[\\]]", &["]"], &["\\"]),
            ("[\\^a]", &["^", "a"], &["b"]),
            ("[a\\-z]", &["a", "-", "z"], &["b"]),
            ("[!a]", &["!", "a"], &["b"]),
            ("[^^]", &["a"], &["^"]),
            ("[*?]", &["*", "?"], &["a"]),
            ("[\\", &["\\"], &["["]),
            ("\\*", &["*"], &["a", "\\*"]),
            ("\\a", &["a"], &["\\a"]),
            ("\\", &["\\"], &["a"]),
            ("a\\", &["a\\"], &["a"]),
            ("\\\\", &["\\"], &["\\\\"]),
            ("*\\*", &["a*", "*"], &["a"]),
            ("abc", &["abc"], &["ab", "abcd", "ABC"]),
            ("ab*?", &["abc", "abcd"], &["ab"]),
            ("user:[0-9]*:*", &["user:1:", "user:12:x"], &["user:a:", "user::"]),
        ];
        for (pattern, yes, no) in cases {
            let of = |text: &str| is_match(pattern.as_bytes(), text.as_bytes());
            for text in *yes {
                assert!(of(text), "{pattern:?} must match {text:?}");
            }
            for text in *no {
                assert!(!of(text), "{pattern:?} must not match {text:?}");
            }
        }
    }

    #[test]
    fn bytes_outside_of_ascii_are_unsigned() {
        assert!(is_match(b"[\x80-\xff]", b"\xc3"));
        assert!(is_match(b"[a-\xff]", b"\x90") && !is_match(b"[a-\xff]", b"A"));
        assert!(is_match(b"?", b"\0") && is_match(b"\0*", b"\0\0"));
    }

    #[test]
    fn a_match_without_steps_is_unknown() {
        let (pattern, text) = ([b"*a".repeat(40), b"b".to_vec()].concat(), b"a".repeat(1_000));
        let mut steps = Steps(1_000);
        assert_eq!(matches(&pattern, &text, &mut steps), None);
        assert_eq!(matches(&pattern, &text, &mut Steps(100_000_000)), Some(false));
        let mut steps = Steps(100);
        assert_eq!(matches(b"ab*", b"abc", &mut steps), Some(true));
        assert_eq!(steps, Steps(95));
    }

    /// The algorithm of Redis, without its limit of nesting: a recursion at every star.
    fn as_redis(pattern: &[u8], text: &[u8]) -> bool {
        let (mut rest, mut text) = (pattern, text);
        while let (Some(&first), Some(&byte)) = (rest.first(), text.first()) {
            if first == b'*' {
                while rest.get(1) == Some(&b'*') {
                    rest = &rest[1..];
                }
                let after = &rest[1..];
                return after.is_empty() || (0..text.len()).any(|at| as_redis(after, &text[at..]));
            }
            let (is_match, length) = match_one(rest, byte);
            if !is_match {
                return false;
            }
            (rest, text) = (&rest[length..], &text[1..]);
            if text.is_empty() {
                while rest.first() == Some(&b'*') {
                    rest = &rest[1..];
                }
            }
        }
        rest.is_empty() && text.is_empty()
    }

    proptest! {
        #[test]
        fn one_star_is_enough_to_return_to(pattern in "[ab*?\\[\\]^\\\\-]{0,12}", text in "[ab*-]{0,10}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(is_match(pattern, text), as_redis(pattern, text));
        }

        #[test]
        fn the_pattern_of_a_prefix_matches_exactly_its_keys(
            prefix in "[ab*?\\[\\]\\\\^-]{0,6}", key in "[ab*?\\[\\]\\\\^-]{1,8}",
        ) {
            let pattern = of_prefix(prefix.as_bytes());
            prop_assert_eq!(is_match(&pattern, key.as_bytes()), key.starts_with(&prefix));
            let longer = format!("{prefix}{key}");
            prop_assert!(is_match(&pattern, longer.as_bytes()));
        }
    }
}
