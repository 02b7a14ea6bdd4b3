//! Figures with their targets: a table for eyes, JSON for tools.

use std::fmt;

use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    AtMost(f64),
    Below(f64),
}

impl Target {
    fn is_reached(self, measured: f64) -> bool {
        match self {
            Target::AtMost(most) => measured <= most,
            Target::Below(bound) => measured < bound,
        }
    }

    fn to_json(self) -> Value {
        match self {
            Target::AtMost(most) => json!({ "at_most": most }),
            Target::Below(bound) => json!({ "below": bound }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(most) if *most == 0.0 => f.write_str("none"),
            Target::AtMost(most) => write!(f, "at most {most}"),
            Target::Below(bound) => write!(f, "below {bound}"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
struct Figure {
    name: String,
    measured: f64,
    unit: &'static str,
    target: Option<Target>,
}

/// What one measurement came to.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    what: String,
    list: Vec<Figure>,
    /// Why there are no more.
    error: Option<String>,
}

impl Figures {
    pub(super) fn of(what: String) -> Figures {
        Figures { what, list: Vec::new(), error: None }
    }

    /// Of a measurement that has failed.
    pub(super) fn failed(what: String, error: String) -> Figures {
        Figures { what, list: Vec::new(), error: Some(error) }
    }

    /// A figure that has no target.
    pub(super) fn state(&mut self, name: impl Into<String>, measured: f64, unit: &'static str) {
        self.add(name.into(), measured, unit, None);
    }

    /// A figure, and the most that it may be.
    pub(super) fn at_most(
        &mut self,
        name: impl Into<String>,
        measured: f64,
        unit: &'static str,
        most: f64,
    ) {
        self.add(name.into(), measured, unit, Some(Target::AtMost(most)));
    }

    /// A figure, and what it must stay below.
    pub(super) fn below(
        &mut self,
        name: impl Into<String>,
        measured: f64,
        unit: &'static str,
        bound: f64,
    ) {
        self.add(name.into(), measured, unit, Some(Target::Below(bound)));
    }

    /// How often something happened that never must.
    pub(super) fn none(&mut self, name: impl Into<String>, count: u64) {
        #[allow(clippy::cast_precision_loss)] // A few at most, or it does not matter how many.
        self.at_most(name, count as f64, "", 0.0);
    }

    fn add(&mut self, name: String, measured: f64, unit: &'static str, target: Option<Target>) {
        let measured = (measured * 100.0).round() / 100.0;
        self.list.push(Figure { name, measured, unit, target });
    }

    /// Whether every target was reached.
    pub(super) fn is_reached(&self) -> bool {
        let is_reached =
            |figure: &Figure| figure.target.is_none_or(|target| target.is_reached(figure.measured));
        self.error.is_none() && self.list.iter().all(is_reached)
    }

    pub(super) fn to_json(&self) -> Value {
        let figure = |figure: &Figure| {
            json!({
                "figure": figure.name,
                "measured": figure.measured,
                "unit": figure.unit,
                "target": figure.target.map(Target::to_json),
                "reached": figure.target.map(|target| target.is_reached(figure.measured)),
            })
        };
        json!({
            "what": self.what,
            "figures": self.list.iter().map(figure).collect::<Vec<_>>(),
            "error": self.error,
            "reached": self.is_reached(),
        })
    }
}

/// All of them, as people read them.
pub(super) fn render(all: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["figure", "measured", "target", "reached"]);
    for figures in all {
        table.add_row([figures.what.clone()]);
        for figure in &figures.list {
            let reached = match figure.target.map(|target| target.is_reached(figure.measured)) {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            table.add_row([
                format!("  {}", figure.name),
                format!("{} {}", figure.measured, figure.unit).trim_end().to_owned(),
                figure.target.map(|target| target.to_string()).unwrap_or_default(),
                reached.to_owned(),
            ]);
        }
        if let Some(error) = &figures.error {
            table.add_row([&format!("  FAILED: {error}"), "", "", "NO"]);
        }
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if at == 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let verdict = match all.iter().all(Figures::is_reached) {
        true => "every target was reached",
        false => "A TARGET WAS MISSED",
    };
    format!("{}\n\n{verdict}", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(worst: f64) -> Figures {
        let mut figures = Figures::of("kill -9".into());
        figures.state("two copies again", 812.0, "ms");
        figures.at_most("PUT, worst", worst, "ms", 250.0);
        figures
    }

    #[test]
    fn a_target_that_is_missed_is_told() {
        let (good, bad) = (kill(250.0), kill(250.01));
        assert!(good.is_reached() && !bad.is_reached());
        assert!(render(std::slice::from_ref(&good)).ends_with("every target was reached"));
        let text = render(&[good, bad]);
        assert!(text.contains("250.01 ms") && text.contains("NO"), "{text}");
        assert!(text.ends_with("A TARGET WAS MISSED"), "{text}");
    }

    #[test]
    fn json_carries_the_same_as_the_table() {
        let json = kill(300.0).to_json();
        assert_eq!(json["reached"], false);
        assert_eq!(json["figures"][0]["reached"], Value::Null);
        assert_eq!(json["figures"][1]["target"]["at_most"], 250.0);
        assert_eq!(json["figures"][1]["reached"], false);
    }

    #[test]
    fn a_measurement_that_failed_reaches_nothing() {
        let failed = Figures::failed("copy".into(), "no disk".into());
        assert!(!failed.is_reached());
        assert!(render(&[failed]).contains("FAILED: no disk"));
    }

    #[test]
    fn a_bound_itself_is_not_below_it() {
        let mut figures = Figures::of("idle".into());
        figures.below("cpu", 1.0, "%", 1.0);
        assert!(!figures.is_reached());
    }
}
