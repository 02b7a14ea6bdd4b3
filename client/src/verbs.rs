//! The verbs of updates in messages.

use kv_protocol::update::{Action, Update};

/// The verb of a batch.
pub(crate) const BATCH: &str = "update";

/// All verbs of updates.
pub(crate) const UPDATE_VERBS: [&str; 10] = [
    BATCH,
    "check",
    "put",
    "delete",
    "add to",
    "append to",
    "overwrite a part of",
    "rename",
    "copy",
    "set the expiry of",
];

/// Returns the verb of an update.
pub(crate) fn of(update: &Update<'_>) -> &'static str {
    match update.action {
        Action::Check => "check",
        Action::Put(_) => "put",
        Action::Delete => "delete",
        Action::Add(_) | Action::AddFloat(_) => "add to",
        Action::Append(_) => "append to",
        Action::SetRange { .. } => "overwrite a part of",
        Action::Rename(_) => "rename",
        Action::Copy(_) => "copy",
        Action::SetExpiry => "set the expiry of",
    }
}

/// Returns the verb of a request with these updates.
pub(crate) fn of_request(updates: &[Update<'_>]) -> &'static str {
    match updates {
        [update] => of(update),
        _ => BATCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_of_every_action_is_listed() {
        let actions = [
            Action::Check,
            Action::Put(b""),
            Action::Delete,
            Action::Add(1),
            Action::AddFloat(b"1"),
            Action::Append(b""),
            Action::SetRange { offset: 0, bytes: b"" },
            Action::Rename(b"k"),
            Action::Copy(b"k"),
            Action::SetExpiry,
        ];
        for update in actions.map(Update::new) {
            assert!(UPDATE_VERBS.contains(&of(&update)), "{update:?}");
            assert_eq!(of_request(&[update]), of(&update));
            assert_eq!(of_request(&[update, update]), BATCH);
        }
    }
}
