//! Tests of the manual pages in `docs/man/`. The pages of the executables are the `--help` output converted to man(7),
//! and `make man` regenerates them. The library's page is written by hand and has every function, struct and status of
//! the header.

use std::fmt::Write;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::common::programs::{CLIENT, COORD, KV_BENCH, SERVER};

/// The installed name, the executable and the description of each page.
const PAGES: [(&str, &str, &str); 4] = [
    ("kv-coord", COORD, "start, watch and stop a cluster of the key-value store"),
    ("kv-server", SERVER, "one storage server of the key-value store"),
    ("kv", CLIENT, "put keys into the key-value store and get them back"),
    ("kv-bench", KV_BENCH, "load a key-value store and measure its throughput and latency"),
];

fn page(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/man").join(name)
}

/// Returns the help text that the program prints under its installed name.
#[track_caller]
fn help(name: &str, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).arg("--help").env("COLUMNS", "100");
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?} --help: {}", output.status);
    String::from_utf8(output.stdout).expect("help in UTF-8")
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        let _ = match c {
            '\\' => write!(escaped, "\\e"),
            '-' => write!(escaped, "\\-"),
            '\'' => write!(escaped, "\\(aq"),
            c if c.is_ascii() => write!(escaped, "{c}"),
            c => write!(escaped, "\\[u{:04X}]", u32::from(c)),
        };
    }
    escaped
}

/// Converts a help text to man(7). A line is a heading ("Options:" without indentation), a term (an option or a number,
/// indented by at most eight), or text. The text of a term follows after two spaces or on the next lines.
fn render(help: &str) -> String {
    let mut page = String::from(".SH DESCRIPTION\n");
    let mut in_list = false;
    for line in help.lines() {
        let (text, indent) = (line.trim(), line.len() - line.trim_start().len());
        let is_term = in_list && (1..=8).contains(&indent);
        if let Some(usage) = line.strip_prefix("Usage: ") {
            let _ = writeln!(page, ".SH USAGE\n{}", escape(usage));
        } else if indent == 0 && text.ends_with(':') {
            in_list = true;
            let _ = writeln!(page, ".SH {}", escape(&text.trim_end_matches(':').to_uppercase()));
        } else if is_term {
            let (term, first) = text.split_once("  ").unwrap_or((text, ""));
            let _ = writeln!(page, ".TP\n.B {}", escape(term));
            let first = first.trim();
            if !first.is_empty() {
                let _ = writeln!(page, "{}", escape(first));
            }
        } else if text.is_empty() {
            page += if in_list { "" } else { ".PP\n" };
        } else {
            // The second line of a usage, a default, and the meaning of a value each have a line of
            // their own.
            let has_own_line = text.starts_with(['[', '-']) || text.starts_with("Possible values:");
            let stands_alone = has_own_line || (!in_list && indent > 0);
            let _ = writeln!(page, "{}{}", if stands_alone { ".br\n" } else { "" }, escape(text));
        }
    }
    page
}

fn rendered(name: &str, program: &str, what: &str) -> String {
    let title = name.to_uppercase();
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".\\\" Written by `make man` from what --help says; do not edit.\n\
         .TH {title} 1 \"\" \"ftkv {version}\" \"User Commands\"\n.SH NAME\n{name} \\- {what}\n"
    );
    page += &render(&help(name, program, &[]));
    if program == COORD {
        for word in ["status", "stop", "detach", "ls", "collect"] {
            let its = render(&help(name, program, &[word])).replace(".SH ", ".SS ");
            let title = format!(".SH {}", word.to_uppercase());
            page += &its.replacen(".SS DESCRIPTION", &title, 1);
        }
    }
    let others = ["kv\\-coord (1)", "kv\\-server (1)", "kv (1)", "kv\\-bench (1)", "kvclient (3)"];
    let own = format!("{} (1)", escape(name));
    page += ".SH SEE ALSO\n";
    for other in others.into_iter().filter(|other| *other != own) {
        let _ = writeln!(page, ".BR {other}");
    }
    page
}

#[test]
fn the_pages_of_the_executables_match_their_help_text() {
    for (name, program, what) in PAGES {
        let (path, page) = (page(&format!("{name}.1")), rendered(name, program, what));
        if std::env::var_os("RENEW_MANUAL").is_some() {
            fs::write(&path, &page).expect("write a page");
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == page, "docs/man/{name}.1 differs from --help: run `make man`\n{page}");
    }
}

#[test]
fn the_page_of_the_library_names_every_function_and_status_and_no_other() {
    let exports = include_str!("../../ffi/abi/exports.txt");
    let header = include_str!("../../include/kvclient.h");
    let statuses = header.lines().filter_map(|line| line.strip_prefix("#define KVC_"));
    let statuses = statuses
        .filter_map(|rest| rest.split_once(' '))
        .filter(|(name, _)| !name.starts_with("VERSION"))
        .filter(|(_, number)| number.parse::<i32>().is_ok_and(|number| number <= 0))
        .map(|(name, _)| format!("KVC_{name}"));
    let mut known: Vec<String> = exports.lines().map(ToOwned::to_owned).chain(statuses).collect();
    let page = fs::read_to_string(page("kvclient.3")).expect("read the page").replace("\\-", "-");
    // A function is named with its parentheses; a status begins a list entry.
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || "_(".contains(c)));
    let functions = words
        .filter_map(|word| word.split_once('(').map(|(name, _)| name))
        .filter(|name| name.starts_with("kvc_"));
    let entries = page.lines().filter_map(|line| line.strip_prefix(".B "));
    let entries = entries.filter(|entry| entry.starts_with("KVC_"));
    let mut named: Vec<String> = functions.chain(entries).map(ToOwned::to_owned).collect();
    for names in [&mut known, &mut named] {
        names.sort_unstable();
        names.dedup();
    }
    assert_eq!(named, known);
}

const HEADER: &str = include_str!("../../include/kvclient.h");

/// Returns the library's page as text, without the macros at the beginnings of lines.
fn library_page() -> String {
    let text = fs::read_to_string(page("kvclient.3")).expect("read the page").replace("\\-", "-");
    let lines = text.lines().filter(|line| *line != ".PP").map(|line| {
        let line = line.strip_prefix(".B \"").unwrap_or(line);
        line.strip_suffix('"').unwrap_or(line)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns a C text without comments and with each run of whitespace as one space.
fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut bare = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        bare += before;
        rest = comment.split_once("*/").expect("an end of the comment").1;
    }
    bare += rest;
    let bare = bare.split_whitespace().collect::<Vec<_>>().join(" ");
    bare.replace("( ", "(")
}

/// Returns the pieces of a text from each `begin` to the next `end`, both included.
fn pieces<'a>(text: &'a str, begin: &str, end: &str) -> Vec<&'a str> {
    let starts = text.match_indices(begin).map(|(at, _)| &text[at..]);
    starts.filter_map(|piece| piece.find(end).map(|at| &piece[..at + end.len()])).collect()
}

#[test]
fn the_page_of_the_library_has_every_struct_with_its_fields() {
    let structs = |text: &str| -> Vec<String> {
        let bare = without_comments(text);
        let fields = pieces(&bare, "typedef struct {", "}");
        let mut found: Vec<String> = fields
            .into_iter()
            .map(|fields| {
                let behind = bare.split_once(fields).expect("it is a part").1;
                let name = behind.split_once(';').expect("a name").0;
                format!("{fields}{name}")
            })
            .collect();
        found.sort_unstable();
        found
    };
    let in_header = structs(HEADER);
    assert!(in_header.len() >= 7, "{in_header:#?}");
    assert_eq!(structs(&library_page()), in_header);
}

#[test]
fn the_page_of_the_library_has_every_function_as_the_header_declares_it() {
    let bare = without_comments(&library_page());
    let declared = without_comments(HEADER.split_once("extern \"C\" {").expect("functions").1);
    let functions = declared.split(';').filter_map(|text| {
        let start = ["int kvc_", "void kvc_", "uint32_t kvc_", "const char *kvc_"];
        start.iter().find_map(|start| text.find(start)).map(|at| &text[at..])
    });
    let mut count = 0;
    for function in functions {
        assert!(bare.contains(&format!("{function};")), "{function}");
        count += 1;
    }
    assert_eq!(count, include_str!("../../ffi/abi/exports.txt").lines().count());
}

#[test]
fn the_page_of_the_library_states_once_for_every_function_which_threads_may_call_it() {
    let text = library_page();
    let table =
        text.split_once("\n.TS\n").expect("a table").1.split_once("\n.TE\n").expect("its end");
    let mut named: Vec<&str> = table
        .0
        .lines()
        .filter_map(|line| line.strip_prefix(".BR "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, _)| name)
        .collect();
    named.sort_unstable();
    let functions: Vec<&str> = include_str!("../../ffi/abi/exports.txt").lines().collect();
    assert_eq!(named, functions);
    let values = table.0.lines().filter_map(|line| line.strip_prefix("T}\tThread safety\t"));
    for value in values {
        assert!(value.starts_with("MT-Safe") || value.starts_with("MT-Unsafe"), "{value}");
    }
    // Without this line, man(1) does not format the table.
    let page = fs::read_to_string(page("kvclient.3")).expect("read the page");
    assert!(page.starts_with("'\\\" t\n"), "the first line");
}

/// Rejects sentences in `.BR` lines. `.BR name ()` sets its words alternately in bold and roman without spaces, so a
/// sentence in such a line would be garbled.
#[test]
fn lines_of_alternating_bold_and_roman_contain_no_sentence() {
    for entry in fs::read_dir(page("")).expect("the pages").flatten() {
        let text = fs::read_to_string(entry.path()).expect("read a page");
        for line in text.lines().filter(|line| line.starts_with(".BR ")) {
            let words = line.split_whitespace().count();
            assert!(words <= 3, "{}: {line}", entry.path().display());
        }
    }
}
