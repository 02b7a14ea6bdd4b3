//! Text from other sources, made safe for a terminal.

/// The maximum number of lines quoted from the output of a program.
const MAX_QUOTED_LINES: usize = 8;

/// Returns the last few lines of a program's output, safe for a terminal, or `None` if there are none.
pub(crate) fn last_lines(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(MAX_QUOTED_LINES);
    let lines = lines[from..].iter().map(|line| printable(line));
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Escapes control characters and invisible characters in text from other sources, so that a terminal does not
/// interpret them.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c) {
            true => c.escape_default().collect::<Vec<char>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_few_and_contain_no_control_characters() {
        let said = (0..20).map(|n| format!("line {n}\n\n")).collect::<String>() + "\x1b[31mred\r\n";
        let quoted = last_lines(said.as_bytes()).unwrap();
        assert_eq!(quoted.lines().count(), MAX_QUOTED_LINES);
        assert!(quoted.ends_with("\\u{1b}[31mred"), "{quoted}");
        assert_eq!(last_lines(b"\n \n"), None);
    }
}
