//! Quoting for POSIX shells.

/// Quotes a word for a shell, if it needs quotes.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Quotes words and joins them with spaces.
pub(crate) fn words(all: &[String]) -> String {
    all.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_quoted_words_back_unchanged() {
        let all: Vec<String> = [
            "",
            "plain-1.x",
            "two words",
            "it's",
            "''",
            "$HOME `id` $(id)",
            "a\nb",
            "\\",
            "\"",
            "*?[a]",
            "~",
            "#",
            ";&|<>",
            "-n",
            "\u{e9}",
            "!",
        ]
        .map(str::to_owned)
        .to_vec();
        let script = format!("for w in {}; do printf '%s\\0' \"$w\"; done", words(&all));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let expected: String = all.iter().map(|word| format!("{word}\0")).collect();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn words_that_need_no_quotes_get_none() {
        assert_eq!(word("server_1.log"), "server_1.log");
        assert_eq!(word("::1"), "::1");
    }
}
