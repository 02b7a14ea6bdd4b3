//! The evaluation of a request on an object: every state that it may leave, given its response.

use std::sync::Arc;

use super::state::{Item, Possible, World};
use super::{
    Answer, Change, Guard, KEYS_MAX, Lifetime, ObjectEntry, Outcome, Shown, Span, Text, Update,
};

/// A possible course of a request so far.
#[derive(Clone)]
struct Course {
    /// The entries after the expiry of some, before the first update.
    base: World,
    /// The entries after the updates so far.
    world: World,
    /// The keys that the updates so far have changed.
    is_changed: [bool; KEYS_MAX],
    /// The times that the primary's clock may have shown.
    clock: Span,
    /// True if the request changes an entry.
    is_done: bool,
}

/// The effect of an update.
enum Step {
    Nothing,
    Store(Text, Option<Span>),
    Remove,
    Transfer(usize, Item, bool),
}

/// Returns the states after a request.
pub(super) fn successors(before: &Possible, entry: &ObjectEntry) -> Vec<Possible> {
    let mut starts = vec![before.clone()];
    // Deletes in doubt matter only to a request that reads their key.
    for key in 0..KEYS_MAX {
        if !entry.updates.iter().any(|update| update.key == key) {
            continue;
        }
        let may_be_deleted = |one: &&Possible| one.deletes[key] > 0 && one.world[key].is_some();
        let deleted = |one: &Possible| {
            let mut one = one.clone();
            one.deletes[key] -= 1;
            one.world[key] = None;
            one
        };
        let deleted: Vec<Possible> = starts.iter().filter(may_be_deleted).map(deleted).collect();
        starts.extend(deleted);
    }
    let after = |start: Possible| {
        let deletes = start.deletes;
        let worlds = worlds_after(&start.world, entry).into_iter();
        worlds.map(move |world| Possible { world, deletes })
    };
    starts.into_iter().flat_map(after).collect()
}

/// Returns the entries after a request.
fn worlds_after(world: &World, entry: &ObjectEntry) -> Vec<World> {
    let mut courses = after_expiry(world, entry);
    let mut ended = Vec::new();
    let is_single = entry.updates.len() == 1;
    for (index, update) in entry.updates.iter().enumerate() {
        let shown = match &entry.answer {
            Answer::Shown { updates, .. } => updates.get(index),
            _ => None,
        };
        let mut next = Vec::new();
        for course in courses {
            for (course, outcome) in course.execute(update, shown, entry, is_single) {
                let is_executed = matches!(outcome, Outcome::Done | Outcome::NotFound);
                let ends = match (&entry.answer, is_single) {
                    (Answer::Failed { .. }, true) => outcome != Outcome::Done,
                    (_, true) => false,
                    (_, false) => !is_executed && !update.is_optional,
                };
                match &entry.answer {
                    Answer::InDoubt if ends => ended.push(course.base),
                    Answer::Failed { index: failed, outcome: why }
                        if *failed == index && ends && outcome == *why =>
                    {
                        ended.push(course.base);
                    }
                    Answer::Failed { index: failed, .. } if *failed == index => {}
                    _ if ends => {}
                    _ => next.push(course),
                }
            }
        }
        courses = next;
    }
    if !matches!(entry.answer, Answer::Failed { .. }) {
        ended.extend(courses.into_iter().filter_map(|course| course.finish(entry)));
    }
    ended
}

/// Returns the number with this many quarters.
fn quarters(count: i32) -> f64 {
    f64::from(count) / 4.0
}

/// Returns the courses in which each entry that the request reads has expired or not.
fn after_expiry(world: &World, entry: &ObjectEntry) -> Vec<Course> {
    let start = |world: &World| Course {
        base: world.clone(),
        world: world.clone(),
        is_changed: [false; KEYS_MAX],
        clock: entry.wall,
        is_done: false,
    };
    let mut courses = vec![start(world)];
    for (key, item) in world.iter().enumerate() {
        let Some(deadline) = item.as_ref().and_then(|item| item.deadline) else { continue };
        if !entry.updates.iter().any(|update| update.key == key) {
            continue;
        }
        let mut next = Vec::new();
        for course in courses {
            // An earlier removal may have been decided by another clock, so it does not limit this one.
            if deadline.from <= course.clock.to {
                let mut expired = course.clone();
                (expired.base[key], expired.world[key]) = (None, None);
                next.push(expired);
            }
            let to = course.clock.to.min(deadline.to.saturating_sub(1));
            if course.clock.from <= to {
                next.push(Course { clock: Span { to, ..course.clock }, ..course });
            }
        }
        courses = next;
    }
    courses
}

impl Course {
    /// Executes an update, whose response is `shown` if it is known.
    fn execute(
        self,
        update: &Update,
        shown: Option<&Shown>,
        entry: &ObjectEntry,
        is_single: bool,
    ) -> Vec<(Course, Outcome)> {
        let mut courses = Vec::new();
        let deadline = self.deadline(update, shown);
        let Some(deadline) = deadline else { return courses };
        for (course, holds) in self.decide(update, deadline) {
            let holds = match holds {
                Some(holds) => holds,
                None => {
                    // The condition compares the deadline of an entry, but there is none.
                    let outcome = if is_single { Outcome::NotFound } else { Outcome::Conflict };
                    course.push_if(update, shown, entry, outcome, &mut courses);
                    continue;
                }
            };
            if !holds {
                course.push_if(update, shown, entry, Outcome::Conflict, &mut courses);
                continue;
            }
            let found = course.world[update.key].clone();
            for (step, outcome, value) in course.steps(update, found.as_ref(), deadline) {
                let mut next = course.clone();
                if !next.shows(update, shown, entry, (outcome, &step), value.as_ref()) {
                    continue;
                }
                next.take(update.key, step);
                courses.push((next, outcome));
            }
        }
        courses
    }

    /// Adds this course if an update that was not executed for this reason has the response.
    fn push_if(
        mut self,
        update: &Update,
        shown: Option<&Shown>,
        entry: &ObjectEntry,
        outcome: Outcome,
        courses: &mut Vec<(Course, Outcome)>,
    ) {
        let found = self.world[update.key].as_ref();
        let value = found.filter(|_| update.returns_value).map(|item| item.value.clone());
        if self.shows(update, shown, entry, (outcome, &Step::Nothing), value.as_ref()) {
            courses.push((self, outcome));
        }
    }

    /// Returns the deadline that an update would set; `None` if it contradicts the response.
    fn deadline(&self, update: &Update, shown: Option<&Shown>) -> Option<Option<Span>> {
        let old = self.world[update.key].as_ref().and_then(|item| item.deadline);
        let after = |millis: i64| {
            let span = self.clock.plus(millis);
            let known = shown.filter(|_| update.returns_value && update.change.stores());
            match known.filter(|shown| shown.outcome == Outcome::Done) {
                Some(Shown { deadline: Some(time), .. }) => {
                    span.contains(*time).then(|| Some(Span::at(*time)))
                }
                _ => Some(Some(span)),
            }
        };
        match update.lifetime {
            Lifetime::Never => Some(None),
            Lifetime::Keep => Some(old),
            Lifetime::At(time) => Some(Some(Span::at(time))),
            Lifetime::KeepOrAfter(_) if old.is_some() => Some(old),
            Lifetime::After(millis) | Lifetime::KeepOrAfter(millis) => after(millis),
        }
    }

    /// Returns the possible values of an update's condition. `None` stands for a condition without an entry to compare.
    fn decide(self, update: &Update, deadline: Option<Span>) -> Vec<(Course, Option<bool>)> {
        let found = self.world[update.key].as_ref();
        let never = Span::at(i64::MAX);
        let (old, new) = (found.and_then(|item| item.deadline), deadline.unwrap_or(never));
        let needs_entry = matches!(
            update.guard,
            Guard::NoDeadline | Guard::HasDeadline | Guard::Later | Guard::Earlier
        );
        if needs_entry && found.is_none() {
            return vec![(self, None)];
        }
        let both = |course: Course, may_hold: bool, may_fail: bool| {
            let mut all = Vec::new();
            if may_hold {
                all.push((course.clone(), Some(true)));
            }
            if may_fail {
                all.push((course, Some(false)));
            }
            all
        };
        let one = |course: Course, holds: bool| both(course, holds, !holds);
        let holds = match &update.guard {
            Guard::Always => true,
            Guard::Absent => found.is_none(),
            Guard::Present => found.is_some(),
            Guard::Value(value) => found.is_some_and(|item| item.value == *value),
            Guard::NoDeadline => old.is_none(),
            Guard::HasDeadline => old.is_some(),
            Guard::Version(_) if self.is_changed[update.key] => false,
            Guard::Version(version) => match found {
                Some(Item { version: None, .. }) => {
                    let mut known = self.clone();
                    for world in [&mut known.base, &mut known.world] {
                        if let Some(item) = &mut world[update.key] {
                            item.version = Some(*version);
                        }
                    }
                    return vec![(known, Some(true)), (self, Some(false))];
                }
                Some(item) => item.version == Some(*version),
                None => false,
            },
            Guard::Later => {
                let old = old.unwrap_or(never);
                return both(self, new.to > old.from, new.from <= old.to);
            }
            Guard::Earlier => {
                let old = old.unwrap_or(never);
                return both(self, new.from < old.to, new.to >= old.from);
            }
        };
        one(self, holds)
    }

    /// Returns the possible effects of an update whose condition holds, with its outcome and the value in its response.
    fn steps(
        &self,
        update: &Update,
        found: Option<&Item>,
        deadline: Option<Span>,
    ) -> Vec<(Step, Outcome, Option<Text>)> {
        let old = found.map(|item| item.value.clone());
        let old_bytes = || old.as_deref().unwrap_or(&[]).to_vec();
        let current = old.clone().filter(|_| update.returns_value);
        let store = |value: Text, shown: Option<Text>| {
            let clock = self.clock;
            // A deadline that was compared with the clock before has not passed.
            let (may_pass, may_last) = match (update.lifetime, deadline) {
                (Lifetime::At(time), _) => (time <= clock.to, time > clock.from),
                (Lifetime::After(millis), _) => (millis <= 0, millis > 0),
                _ => (false, true),
            };
            let mut steps = Vec::new();
            if may_last {
                let step = Step::Store(Arc::clone(&value), deadline);
                steps.push((step, Outcome::Done, shown.clone()));
            }
            if may_pass {
                let step = if found.is_some() { Step::Remove } else { Step::Nothing };
                steps.push((step, Outcome::Done, shown));
            }
            steps
        };
        let text = |number: String| Text::from(number.into_bytes());
        match &update.change {
            Change::Check => {
                let is_there = found.is_some() || update.guard == Guard::Absent;
                let outcome = if is_there { Outcome::Done } else { Outcome::NotFound };
                vec![(Step::Nothing, outcome, current)]
            }
            Change::CheckPart { from, most, from_end } => {
                let part = |value: Text| {
                    let start = match from_end {
                        true => value.len().saturating_sub(*from),
                        false => (*from).min(value.len()),
                    };
                    let end = start.saturating_add(*most).min(value.len());
                    Text::from(&value[start..end])
                };
                let outcome = if found.is_some() { Outcome::Done } else { Outcome::NotFound };
                vec![(Step::Nothing, outcome, current.map(part))]
            }
            Change::Put(value) => store(Arc::clone(value), current),
            Change::Delete if found.is_none() => vec![(Step::Nothing, Outcome::NotFound, None)],
            Change::Delete => vec![(Step::Remove, Outcome::Done, current)],
            Change::Add(amount) => {
                let number = match &old {
                    None => Some(0),
                    Some(value) => str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                };
                match number.map(|number: i64| number.checked_add(*amount)) {
                    None => vec![(Step::Nothing, Outcome::NotANumber, current)],
                    Some(None) => vec![(Step::Nothing, Outcome::Overflow, current)],
                    Some(Some(sum)) => {
                        let sum = text(sum.to_string());
                        store(Arc::clone(&sum), Some(sum))
                    }
                }
            }
            Change::AddQuarters(amount) => {
                let number: Option<f64> = match &old {
                    None => Some(0.0),
                    Some(value) => str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                };
                match number {
                    None => vec![(Step::Nothing, Outcome::NotANumber, current)],
                    Some(number) => {
                        let sum = text((number + quarters(*amount)).to_string());
                        store(Arc::clone(&sum), Some(sum))
                    }
                }
            }
            Change::Append(bytes) => {
                let mut value = old_bytes();
                value.extend_from_slice(bytes);
                let length = text(value.len().to_string());
                store(value.into(), Some(length))
            }
            Change::SetRange(offset, bytes) => {
                let mut value = old_bytes();
                let end = offset + bytes.len();
                value.resize(value.len().max(end), 0);
                value[*offset..end].copy_from_slice(bytes);
                let length = text(value.len().to_string());
                store(value.into(), Some(length))
            }
            Change::Rename(to) | Change::Copy(to) => match found {
                None => vec![(Step::Nothing, Outcome::NotFound, None)],
                Some(_) if *to == update.key => vec![(Step::Nothing, Outcome::Done, current)],
                Some(item) => {
                    let moves = matches!(update.change, Change::Rename(_));
                    let value = current.filter(|_| !moves);
                    vec![(Step::Transfer(*to, item.clone(), moves), Outcome::Done, value)]
                }
            },
            Change::SetExpiry => match &old {
                None => vec![(Step::Nothing, Outcome::NotFound, None)],
                Some(value) => store(Arc::clone(value), current),
            },
        }
    }

    /// Returns whether an update has this response. If the response shows an unknown deadline, records it.
    fn shows(
        &mut self,
        update: &Update,
        shown: Option<&Shown>,
        entry: &ObjectEntry,
        (outcome, step): (Outcome, &Step),
        value: Option<&Text>,
    ) -> bool {
        let Some(shown) = shown else { return true };
        if shown.outcome != outcome || shown.value.as_ref() != value {
            return false;
        }
        let is_shown = update.returns_value && entry.shows_deadline;
        // The response has the deadline of the entry after the update.
        let (expected, is_changed) = match step {
            Step::Store(_, deadline) => (*deadline, true),
            Step::Remove | Step::Transfer(.., true) => (None, true),
            Step::Nothing | Step::Transfer(.., false) => {
                (self.world[update.key].as_ref().and_then(|item| item.deadline), false)
            }
        };
        match (expected.filter(|_| is_shown), shown.deadline) {
            (None, None) => true,
            (Some(span), Some(time)) if span.contains(time) => {
                if !is_changed && !self.is_changed[update.key] {
                    for world in [&mut self.base, &mut self.world] {
                        if let Some(item) = &mut world[update.key] {
                            item.deadline = Some(Span::at(time));
                        }
                    }
                }
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, key: usize, step: Step) {
        self.is_done |= !matches!(step, Step::Nothing);
        match step {
            Step::Nothing => {}
            Step::Store(value, deadline) => {
                self.change(key, Some(Item { value, version: None, deadline }));
            }
            Step::Remove => self.change(key, None),
            Step::Transfer(to, item, moves) => {
                self.change(to, Some(Item { version: None, ..item }));
                if moves {
                    self.change(key, None);
                }
            }
        }
    }

    fn change(&mut self, key: usize, item: Option<Item>) {
        self.world[key] = item;
        self.is_changed[key] = true;
    }

    /// Returns the entries after the request, with the version in its response; `None` if the version contradicts
    /// them.
    fn finish(mut self, entry: &ObjectEntry) -> Option<World> {
        let Answer::Shown { version, .. } = entry.answer else { return Some(self.world) };
        if self.is_done {
            let changed = self.world.iter_mut().zip(self.is_changed).filter(|(_, is)| *is);
            changed.filter_map(|(item, _)| item.as_mut()).for_each(|item| {
                item.version = entry.shows_version.then_some(version);
            });
            return Some(self.world);
        }
        if !entry.shows_version {
            return Some(self.world);
        }
        // Of several updates without effect, the response has the version of one of the keys.
        if entry.updates.len() == 1 {
            let item = &mut self.world[entry.updates[0].key];
            match item {
                None if version != 0 => return None,
                Some(Item { version: Some(known), .. }) if *known != version => return None,
                Some(item) => item.version = Some(version),
                None => {}
            }
        }
        Some(self.world)
    }
}
