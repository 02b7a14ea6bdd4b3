//! The keys that a scan must return and those that it may return, by the histories of registers.

use crate::register::{Asked, Entry, Returned};

/// Returns whether a key certainly existed from the start of a scan to its end: a write has created it before, and no
/// delete can have been executed after this write and before the end of the scan.
pub fn existed_throughout(history: &[Entry], start: i64, end: i64) -> bool {
    let created = |entry: &&Entry| {
        matches!(entry.asked, Asked::Write(_) | Asked::Swap { .. })
            && entry.returned == (Returned::Done { changed: true })
            && entry.end < start
    };
    let may_remove = |since: i64| {
        history
            .iter()
            .any(|entry| entry.asked == Asked::Delete && entry.end >= since && entry.start <= end)
    };
    history.iter().filter(created).any(|write| !may_remove(write.start))
}

/// Returns whether an operation may have created a key before the end of a scan.
pub fn may_have_existed(history: &[Entry], end: i64) -> bool {
    let may_create = |entry: &Entry| {
        matches!(entry.asked, Asked::Write(_) | Asked::Swap { .. }) && entry.start <= end
    };
    history.iter().any(may_create)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(asked: Asked, start: i64, end: i64) -> Entry {
        Entry { client: 1, start, end, asked, returned: Returned::Done { changed: true } }
    }

    #[test]
    fn a_key_exists_throughout_if_it_was_written_before_and_not_removed() {
        let history = [entry(Asked::Write(1), 0, 10), entry(Asked::Delete, 50, 60)];
        assert!(existed_throughout(&history, 11, 49));
        assert!(!existed_throughout(&history, 10, 49), "it may not have been written yet");
        assert!(!existed_throughout(&history, 11, 50), "it may have been removed");
        let again = [history[0], history[1], entry(Asked::Write(2), 61, 70)];
        assert!(existed_throughout(&again, 71, 80));
        assert!(!existed_throughout(&again, 65, 80));
    }

    #[test]
    fn a_key_may_exist_once_its_first_write_has_begun() {
        let history = [entry(Asked::Delete, 0, 1), entry(Asked::Write(1), 5, 9)];
        assert!(!may_have_existed(&history, 4));
        assert!(may_have_existed(&history, 5));
    }
}
