//! The kinds of operations on objects in the report.

use kv_history::object::{Change, Guard, Lifetime, ObjectRecord, Update};

/// All kinds of operations on objects.
pub(crate) const KINDS: [&str; 31] = [
    "get",
    "get with deadline",
    "get deadline",
    "get range",
    "check",
    "put",
    "put if absent",
    "put if present",
    "put if version",
    "put if value",
    "put if deadline",
    "put, old value",
    "put for a time",
    "put until a time",
    "put, deadline kept",
    "delete",
    "delete if",
    "get and delete",
    "expire",
    "expire if none",
    "expire if some",
    "expire if later",
    "expire if earlier",
    "persist",
    "get and expire",
    "add",
    "add float",
    "append",
    "set range",
    "rename, copy",
    "batch",
];

/// All kinds of scans.
pub(crate) const SCANS: [&str; 3] = ["scan", "scan with values", "count"];

/// Returns the kind of an operation.
pub(crate) fn of(record: &ObjectRecord) -> &'static str {
    match &record.updates[..] {
        [update] if record.is_read => match update.change {
            Change::CheckPart { most: 0, .. } => "get deadline",
            Change::CheckPart { .. } => "get range",
            _ if record.shows_deadline => "get with deadline",
            _ => "get",
        },
        [update] => of_update(update),
        _ => "batch",
    }
}

fn of_update(update: &Update) -> &'static str {
    match update.change {
        Change::Check | Change::CheckPart { .. } => "check",
        Change::Put(_) => of_put(update),
        Change::Delete if update.returns_value => "get and delete",
        Change::Delete if update.guard != Guard::Always => "delete if",
        Change::Delete => "delete",
        Change::Add(_) => "add",
        Change::AddQuarters(_) => "add float",
        Change::Append(_) => "append",
        Change::SetRange(..) => "set range",
        Change::Rename(_) | Change::Copy(_) => "rename, copy",
        Change::SetExpiry => match update.guard {
            Guard::NoDeadline => "expire if none",
            Guard::HasDeadline if update.lifetime == Lifetime::Never => "persist",
            Guard::HasDeadline => "expire if some",
            Guard::Later => "expire if later",
            Guard::Earlier => "expire if earlier",
            _ if update.returns_value => "get and expire",
            _ => "expire",
        },
    }
}

fn of_put(update: &Update) -> &'static str {
    match (&update.guard, update.lifetime) {
        (Guard::Absent, _) => "put if absent",
        (Guard::Present, _) => "put if present",
        (Guard::Version(_), _) => "put if version",
        (Guard::Value(_), _) => "put if value",
        (Guard::NoDeadline | Guard::HasDeadline | Guard::Later | Guard::Earlier, _) => {
            "put if deadline"
        }
        (Guard::Always, Lifetime::After(_)) => "put for a time",
        (Guard::Always, Lifetime::At(_)) => "put until a time",
        (Guard::Always, Lifetime::Keep | Lifetime::KeepOrAfter(_)) => "put, deadline kept",
        (Guard::Always, Lifetime::Never) if update.returns_value => "put, old value",
        (Guard::Always, Lifetime::Never) => "put",
    }
}
