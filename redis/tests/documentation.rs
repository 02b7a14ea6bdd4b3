//! The table of commands in `docs/redis.md` is that of the code. `RENEW_MANUAL=1` writes it (`make man`).

use std::fmt::Write as _;
use std::path::Path;

use kv_redis::command::{DIFFERENCES, all, differences};

const BEGIN: &str = "<!-- The table is generated: make man -->\n";
const END: &str = "<!-- The end of the table -->\n";

fn table() -> String {
    let mut commands: Vec<_> = all().collect();
    commands.sort_by_key(|command| command.name);
    let mut table = String::from("| command | purpose | differences |\n|---|---|---|\n");
    for command in commands {
        let subcommands: Vec<String> =
            command.subcommands.iter().map(|sub| sub.own_name().to_uppercase()).collect();
        let mut name = command.name.to_uppercase();
        if !subcommands.is_empty() {
            name = format!("{name} {}", subcommands.join(", "));
        }
        let differences = differences(command.name);
        writeln!(table, "| {name} | {} | {differences} |", command.summary).unwrap();
    }
    table
}

#[test]
fn the_page_lists_every_command() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/redis.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the beginning of the table");
    let (kept, after) = rest.split_once(END).expect("the end of the table");
    let made = table();
    if std::env::var_os("RENEW_MANUAL").is_some() {
        let page = format!("{before}{BEGIN}{made}{END}{after}");
        std::fs::write(&path, page).expect("write the page");
        return;
    }
    assert!(kept == made, "docs/redis.md differs from the table of commands: run `make man`");
}

#[test]
fn differences_are_those_of_existing_commands() {
    for (name, _) in DIFFERENCES {
        assert!(all().any(|command| command.name == *name), "{name} is no command");
    }
}
