//! The table of all commands, in the order of their names, and its index.
//!
//! ```text
//!   name -> 16 bytes -> hash -> slot, slot + 1, ...     the first one with this name, or none before an empty one
//! ```
//!
//! Both are made when the program is compiled.

use super::{Command, FAMILIES};

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

/// The number of slots of the index, at least twice that of commands.
const SLOTS: usize = 512;
/// An empty slot.
const EMPTY: u8 = u8::MAX;
const _: () = assert!(2 * COUNT <= SLOTS && COUNT < EMPTY as usize, "the index is too small");

/// The index of a command for each slot.
static INDEX: [u8; SLOTS] = {
    let (mut index, mut at) = ([EMPTY; SLOTS], 0);
    while at < COUNT {
        let mut slot = slot(SORTED[at].name.as_bytes());
        while index[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        #[allow(clippy::cast_possible_truncation)] // Less than `EMPTY`.
        {
            index[slot] = at as u8;
        }
        at += 1;
    }
    index
};

/// Returns the first slot of a name in any case: a multiplicative hash of its first 16 bytes. Letters differ from those
/// of the other case in one bit.
#[allow(clippy::cast_possible_truncation)] // The result is less than `SLOTS`.
const fn slot(name: &[u8]) -> usize {
    let (mut halves, mut at) = ([0u64; 2], 0);
    while at < 16 && at < name.len() {
        halves[at / 8] = halves[at / 8] << 8 | (name[at] | 0x20) as u64;
        at += 1;
    }
    let mixed = halves[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ halves[1];
    let mixed = mixed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> (u64::BITS - SLOTS.trailing_zeros())) as usize
}

const SORTED: [&Command; COUNT] = {
    let mut sorted = [&FAMILIES[0][0]; COUNT];
    let (mut count, mut family) = (0, 0);
    while family < FAMILIES.len() {
        let mut index = 0;
        while index < FAMILIES[family].len() {
            let command = &FAMILIES[family][index];
            let mut at = count;
            while at > 0 && is_less(command.name.as_bytes(), sorted[at - 1].name.as_bytes()) {
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

/// Returns whether a name comes before another one.
const fn is_less(name: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() && at < other.len() {
        if name[at] != other[at] {
            return name[at] < other[at];
        }
        at += 1;
    }
    name.len() < other.len()
}

/// Returns all commands, in the order of their names.
pub fn all() -> impl ExactSizeIterator<Item = &'static Command> {
    COMMANDS.iter().copied()
}

/// Returns the command with this name, in any case.
pub fn find(name: &[u8]) -> Option<&'static Command> {
    let mut slot = slot(name);
    while INDEX[slot] != EMPTY {
        let command = COMMANDS[usize::from(INDEX[slot])];
        if command.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(command);
        }
        slot = (slot + 1) % SLOTS;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        assert!(all().map(|command| command.name).is_sorted_by(|name, next| name < next));
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
