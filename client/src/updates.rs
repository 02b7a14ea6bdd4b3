//! The checks of the updates of a request before it is sent.

use kv_protocol::client_message::{Condition, REQUEST_FIXED_BYTES};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_FLOAT_UPDATES, MAX_UPDATES};
use kv_protocol::update::{Action as Change, InvalidUpdate, Update};

use crate::error::{Action, Error};
use crate::verbs;

/// Returns the description of one update of a request for `key`.
pub(crate) fn action(key: &[u8], update: &Update<'_>) -> Action {
    Action::new(verbs::of(update), update.key.unwrap_or(key))
}

/// Checks the updates of a request for `key` against the limits, and returns them. The condition is that of the
/// options.
pub(crate) fn check<'a>(
    key: &[u8],
    updates: &'a [Update<'a>],
    condition: Condition,
) -> Result<&'a [Update<'a>], Error> {
    let count = updates.len();
    let request = || Action::new(verbs::of_request(updates), key);
    if condition != Condition::Always {
        let reason =
            "the options of updates cannot have a condition; set the condition of each update";
        return Err(Error::Invalid { action: request(), reason: reason.to_owned() });
    }
    if count == 0 {
        let reason = "the batch has no update; it needs 1 to 1,024".to_owned();
        return Err(Error::Invalid { action: request(), reason });
    }
    if count > MAX_UPDATES {
        let reason = format!("the batch has {count} updates; at most {MAX_UPDATES} are allowed");
        return Err(Error::TooBig { action: request(), reason });
    }
    for (index, update) in updates.iter().enumerate() {
        let Err(invalid) = update.validate() else { continue };
        let one = action(key, update);
        let action = if count > 1 { one.in_batch(index, count) } else { one };
        let reason = invalid.reason().to_owned();
        return Err(match invalid {
            InvalidUpdate::ValueLength => Error::TooBig { action, reason },
            _ => Error::Invalid { action, reason },
        });
    }
    let floats =
        updates.iter().filter(|update| matches!(update.action, Change::AddFloat(_))).count();
    if floats > usize::from(MAX_FLOAT_UPDATES) {
        let reason = format!(
            "the batch has {floats} additions to floating-point numbers; at most {MAX_FLOAT_UPDATES} are allowed"
        );
        return Err(Error::Invalid { action: request(), reason });
    }
    let items = updates.iter().map(Update::wire_bytes).sum::<usize>();
    let (bytes, most) = (REQUEST_FIXED_BYTES + key.len() + items, MAX_CLIENT_BODY);
    if bytes > most {
        let reason =
            format!("the length of the request is {bytes} bytes; at most {most} are allowed");
        return Err(Error::TooBig { action: request(), reason });
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
    use kv_protocol::update::{Expiry, Precondition};

    fn refused(updates: &[Update<'_>]) -> String {
        check(b"k", updates, Condition::Always).unwrap_err().to_string()
    }

    #[test]
    fn invalid_updates_are_rejected_with_their_place() {
        let valid = Update::new(Change::Add(1));
        let long = vec![0; MAX_KEY_BYTES + 1];
        let bad = Update { key: Some(&long), ..valid };
        assert_eq!(check(b"k", &[valid, valid], Condition::Always), Ok(&[valid, valid][..]));
        assert!(refused(&[]).contains("no update"));
        assert!(refused(&[valid; MAX_UPDATES + 1]).contains("1025 updates"));
        assert!(refused(&[bad]).starts_with("add to"), "{}", refused(&[bad]));
        assert!(refused(&[valid, bad]).contains("(update 2 of 2): a key has"));
        let later = Update { condition: Precondition::Later, ..valid };
        assert!(refused(&[later]).contains("compares deadlines"));
        let kept = Update { expiry: Expiry::Never, ..Update::new(Change::Delete) };
        assert!(refused(&[kept]).contains("cannot set or remove a deadline"));
        let text = check(b"k", &[valid], Condition::IfAbsent).unwrap_err().to_string();
        assert!(text.contains("condition of each update"), "{text}");
    }

    #[test]
    fn a_batch_has_a_limited_number_of_floating_point_additions() {
        let float = Update::new(Change::AddFloat(b"1.5"));
        let most = usize::from(MAX_FLOAT_UPDATES);
        let mut updates = vec![float; most];
        updates.push(Update::new(Change::Add(1)));
        assert!(check(b"k", &updates, Condition::Always).is_ok());
        updates.push(float);
        let text = refused(&updates);
        assert!(text.contains("33 additions to floating-point numbers; at most 32"), "{text}");
    }

    #[test]
    fn a_request_that_fits_no_frame_is_rejected() {
        let value = vec![0; MAX_VALUE_BYTES];
        let put = Update::new(Change::Put(&value));
        assert!(check(b"k", &[put], Condition::Always).is_ok());
        assert!(refused(&[put, put]).contains("length of the request"));
        let swap = Update { condition: Precondition::Value(&value), ..put };
        assert!(refused(&[swap]).contains("length of the request"));
    }
}
