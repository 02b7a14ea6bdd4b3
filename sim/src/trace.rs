//! What happened last, in words, for whoever reads a failure.

use std::collections::VecDeque;
use std::fmt;

use kv_protocol::ids::GroupId;

/// Lines that are kept.
const LINES: usize = 20_000;

/// Which groups a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// All of them.
    All,
    /// One.
    Group(GroupId),
    /// The two that are at home at a place of a ring of so many.
    Place(usize, u16),
}

/// The last lines, and which groups each is about.
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
    /// Notes something; `now` is true time in nanoseconds.
    pub fn note(&mut self, now: u64, about: About, words: fmt::Arguments<'_>) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((about, format!("{:>12.6} s  {words}", now as f64 / 1e9)));
    }

    /// The lines about a group, or all.
    pub fn lines(&self, group: Option<GroupId>) -> impl Iterator<Item = &str> {
        let wanted = move |about: About| group.is_none_or(|group| about.includes(group));
        self.lines.iter().filter(move |(about, _)| wanted(*about)).map(|(_, line)| line.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_s_trace_has_what_concerns_it_and_nothing_else() {
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
