//! The most recent events as text, for the analysis of a failure.

use std::collections::VecDeque;
use std::fmt;

use kv_protocol::ids::GroupId;

/// The number of lines kept.
const LINES: usize = 20_000;

/// The groups that a line concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// All groups.
    All,
    /// One group.
    Group(GroupId),
    /// The two groups at home at a place, in a ring of this many servers.
    Place(usize, u16),
}

/// The most recent lines, each with the groups that it concerns.
#[derive(Debug, Default)]
pub struct Trace {
    lines: VecDeque<(About, String)>,
}

impl About {
    fn includes(self, group: GroupId) -> bool {
        match self {
            About::All => true,
            About::Group(one) => one == group,
            About::Place(place, servers) => {
                let (home, next) = (usize::from(group.0), usize::from((group.0 + 1) % servers));
                place == home || place == next
            }
        }
    }
}

impl Trace {
    /// Records an event; `now` is true time in nanoseconds.
    pub fn note(&mut self, now: u64, about: About, words: fmt::Arguments<'_>) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((about, format!("{:>12.6} s  {words}", now as f64 / 1e9)));
    }

    /// Returns the lines that concern a group, or all lines.
    pub fn lines(&self, group: Option<GroupId>) -> impl Iterator<Item = &str> {
        let wanted = move |about: About| group.is_none_or(|group| about.includes(group));
        self.lines.iter().filter(move |(about, _)| wanted(*about)).map(|(_, line)| line.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_a_group_has_exactly_the_lines_that_concern_it() {
        let mut trace = Trace::default();
        trace.note(1, About::All, format_args!("all"));
        trace.note(2, About::Group(GroupId(2)), format_args!("group 2"));
        trace.note(3, About::Place(0, 3), format_args!("place 0"));
        trace.note(4, About::Place(1, 3), format_args!("place 1"));
        let of = |group| -> Vec<String> {
            let words = trace.lines(group).map(|line| line.split("s  ").nth(1).unwrap_or(""));
            words.map(str::to_owned).collect()
        };
        assert_eq!(of(Some(GroupId(2))), ["all", "group 2", "place 0"]);
        assert_eq!(of(Some(GroupId(0))), ["all", "place 0", "place 1"]);
        assert_eq!(of(None).len(), 4);
    }
}
