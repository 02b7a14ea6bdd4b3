//! The names to which a run renames the files of earlier runs, so that it never overwrites them.
//!
//! ```text
//!   server_0.primary          written by this run
//!   server_0.primary.old      the newest renamed file
//!   server_0.primary.old.2    older ones: the higher the number, the newer
//!   server_0.primary.old.3
//! ```

/// The maximum number of renamed files that are kept for one name.
pub const MAX_ASIDE: usize = 8;

const OLD: &str = ".old";

/// Returns the name of the newest renamed file of this name.
pub fn newest(name: &str) -> String {
    format!("{name}{OLD}")
}

/// Returns the name of the renamed file with this number. `number` is at least 2.
pub fn numbered(name: &str, number: u32) -> String {
    format!("{name}{OLD}.{number}")
}

/// Returns the number in `aside`, the name of a renamed file `name`; `None` if `aside` has another form.
pub fn number_of(name: &str, aside: &str) -> Option<u32> {
    let number = aside.strip_prefix(name)?.strip_prefix(OLD)?.strip_prefix('.')?;
    let number = number.parse::<u32>().ok().filter(|known| known.to_string() == number)?;
    (number >= 2).then_some(number)
}

/// Returns the number for the next file to be renamed: one above the highest existing number, and at least 2.
pub fn next_number(known: impl Iterator<Item = u32>) -> u32 {
    known.max().unwrap_or(1).saturating_add(1)
}

/// Returns the name that a renamed file had in the run that wrote it. Any other name is returned unchanged.
pub fn plain(aside: &str) -> &str {
    if let Some(name) = aside.strip_suffix(OLD) {
        return name;
    }
    match aside.rsplit_once('.').and_then(|(rest, _)| rest.strip_suffix(OLD)) {
        Some(name) if number_of(name, aside).is_some() => name,
        _ => aside,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_name_is_recovered_from_every_name_of_a_kept_file() {
        let name = "server_0.primary";
        for aside in [newest(name), numbered(name, 2), numbered(name, 17)] {
            assert_eq!(plain(&aside), name, "{aside}");
        }
        assert_eq!(number_of(name, &numbered(name, 17)), Some(17));
        for other in [name, "server_0.primary.old", "server_0.primary.old.x", "a.old.1", "a.old.02"]
        {
            assert_eq!(number_of(name, other), None, "{other}");
        }
        assert_eq!(plain("server_0.primary.old.x"), "server_0.primary.old.x");
        assert_eq!(next_number([].into_iter()), 2);
        assert_eq!(next_number([3, 7, 2].into_iter()), 8);
    }
}
