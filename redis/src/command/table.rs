//! The table of all commands, in the order of their names.
//!
//! A lookup compares numbers: the first 16 bytes of a name in lower case, the first byte highest. The table is sorted
//! when the program is compiled.

use super::{Command, FAMILIES};

/// The number of bytes of a name that are compared first.
const PREFIX: usize = 16;
const COUNT: usize = {
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        count += FAMILIES[family].len();
        family += 1;
    }
    count
};

/// The commands in the order of their names.
static COMMANDS: [&Command; COUNT] = SORTED;
/// The first bytes of their names.
static PREFIXES: [u128; COUNT] = {
    let (mut prefixes, mut at) = ([0; COUNT], 0);
    while at < COUNT {
        prefixes[at] = prefix(SORTED[at].name.as_bytes());
        assert!(at == 0 || prefixes[at - 1] < prefixes[at], "two commands have the same prefix");
        at += 1;
    }
    prefixes
};

const SORTED: [&Command; COUNT] = {
    let mut sorted = [&FAMILIES[0][0]; COUNT];
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        let mut index = 0;
        while index < FAMILIES[family].len() {
            let command = &FAMILIES[family][index];
            let name = prefix(command.name.as_bytes());
            let mut at = count;
            while at > 0 && prefix(sorted[at - 1].name.as_bytes()) > name {
                sorted[at] = sorted[at - 1];
                at -= 1;
            }
            sorted[at] = command;
            (count, index) = (count + 1, index + 1);
        }
        family += 1;
    }
    sorted
};

/// Returns the first bytes of a name in lower case, the first byte highest.
const fn prefix(name: &[u8]) -> u128 {
    let mut bytes = [0; PREFIX];
    let mut at = 0;
    while at < PREFIX && at < name.len() {
        bytes[at] = name[at].to_ascii_lowercase();
        at += 1;
    }
    u128::from_be_bytes(bytes)
}

/// Returns all commands, in the order of their names.
pub fn all() -> impl ExactSizeIterator<Item = &'static Command> {
    COMMANDS.iter().copied()
}

/// Returns the command with this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Command> {
    let command = COMMANDS[PREFIXES.binary_search(&prefix(name)).ok()?];
    command.name.as_bytes().eq_ignore_ascii_case(name).then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        assert_eq!(all().count(), FAMILIES.iter().map(|family| family.len()).sum::<usize>());
        for command in all() {
            let upper = command.name.to_ascii_uppercase();
            for name in [command.name, &upper] {
                assert_eq!(find(name.as_bytes()).unwrap().name, command.name);
            }
        }
        for name in [&b""[..], b"g", b"gett", b"get\0", b"incrbyfloatincrbyfloat", b"\xff\xff"] {
            assert!(find(name).is_none(), "{}", name.escape_ascii());
        }
    }
}
