//! Measured figures and their targets, as a table for people and as JSON for programs.

use std::fmt;

use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

/// The target of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    AtMost(f64),
    Below(f64),
    /// A target for speed. It depends on the machine, so a miss is not a failure.
    ShouldBeAtMost(f64),
    ShouldBeAtLeast(f64),
}

impl Target {
    fn is_reached(self, measured: f64) -> bool {
        match self {
            Target::AtMost(most) | Target::ShouldBeAtMost(most) => measured <= most,
            Target::Below(bound) => measured < bound,
            Target::ShouldBeAtLeast(least) => measured >= least,
        }
    }

    /// Returns whether a miss of this target is a failure of the run.
    fn is_promise(self) -> bool {
        matches!(self, Target::AtMost(_) | Target::Below(_))
    }

    fn to_json(self) -> Value {
        match self {
            Target::AtMost(most) => json!({ "at_most": most }),
            Target::Below(bound) => json!({ "below": bound }),
            Target::ShouldBeAtMost(most) => json!({ "should_be_at_most": most }),
            Target::ShouldBeAtLeast(least) => json!({ "should_be_at_least": least }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(most) if *most == 0.0 => f.write_str("none"),
            Target::AtMost(most) => write!(f, "at most {most}"),
            Target::Below(bound) => write!(f, "below {bound}"),
            Target::ShouldBeAtMost(most) => write!(f, "should be at most {most}"),
            Target::ShouldBeAtLeast(least) => write!(f, "should be at least {least}"),
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

/// The result of one measurement.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    what: String,
    list: Vec<Figure>,
    /// The error that ended the measurement.
    error: Option<String>,
}

impl Figures {
    pub(super) fn of(what: String) -> Figures {
        Figures { what, list: Vec::new(), error: None }
    }

    /// Creates the result of a measurement that ended with an error.
    pub(super) fn failed(what: String, error: String) -> Figures {
        Figures { what, list: Vec::new(), error: Some(error) }
    }

    /// Adds a figure without a target.
    pub(super) fn state(&mut self, name: impl Into<String>, measured: f64, unit: &'static str) {
        self.add(name.into(), measured, unit, None);
    }

    /// Adds a figure with an upper bound.
    pub(super) fn at_most(
        &mut self,
        name: impl Into<String>,
        measured: f64,
        unit: &'static str,
        most: f64,
    ) {
        self.add(name.into(), measured, unit, Some(Target::AtMost(most)));
    }

    /// Adds a figure with an exclusive upper bound.
    pub(super) fn below(
        &mut self,
        name: impl Into<String>,
        measured: f64,
        unit: &'static str,
        bound: f64,
    ) {
        self.add(name.into(), measured, unit, Some(Target::Below(bound)));
    }

    /// Adds a measured time or rate with a recommended upper bound.
    pub(super) fn should_be_at_most(&mut self, name: impl Into<String>, measured: f64, most: f64) {
        self.add(name.into(), measured, "", Some(Target::ShouldBeAtMost(most)));
    }

    /// Adds a figure of speed with a recommended lower bound.
    pub(super) fn should_be_at_least(
        &mut self,
        name: impl Into<String>,
        measured: f64,
        unit: &'static str,
        least: f64,
    ) {
        self.add(name.into(), measured, unit, Some(Target::ShouldBeAtLeast(least)));
    }

    /// Adds the count of an event that must never occur, with the target zero.
    pub(super) fn none(&mut self, name: impl Into<String>, count: u64) {
        #[allow(clippy::cast_precision_loss)] // Large counts need not be exact.
        self.at_most(name, count as f64, "", 0.0);
    }

    fn add(&mut self, name: String, measured: f64, unit: &'static str, target: Option<Target>) {
        let measured = (measured * 100.0).round() / 100.0;
        self.list.push(Figure { name, measured, unit, target });
    }

    /// Returns whether every target was reached, except for targets for speed.
    pub(super) fn is_reached(&self) -> bool {
        self.error.is_none() && self.missed().all(|target| !target.is_promise())
    }

    fn missed(&self) -> impl Iterator<Item = Target> {
        let target = |figure: &Figure| figure.target.filter(|t| !t.is_reached(figure.measured));
        self.list.iter().filter_map(target)
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

/// Renders all figures for people.
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
    let slow = all.iter().flat_map(Figures::missed).filter(|target| !target.is_promise()).count();
    let verdict = match (all.iter().all(Figures::is_reached), slow) {
        (true, 0) => "every target was reached".to_owned(),
        (true, slow) => {
            format!("every guarantee held; speed targets missed: {slow}")
        }
        (false, _) => "A TARGET WAS MISSED".to_owned(),
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
    fn a_missed_target_is_reported() {
        let (good, bad) = (kill(250.0), kill(250.01));
        assert!(good.is_reached() && !bad.is_reached());
        assert!(render(std::slice::from_ref(&good)).ends_with("every target was reached"));
        let text = render(&[good, bad]);
        assert!(text.contains("250.01 ms") && text.contains("NO"), "{text}");
        assert!(text.ends_with("A TARGET WAS MISSED"), "{text}");
    }

    #[test]
    fn a_missed_speed_target_is_reported_and_is_no_failure() {
        let mut figures = kill(1.0);
        figures.should_be_at_most("p99 during / before", 2.5, 2.0);
        figures.should_be_at_least("share", 69.9, "%", 70.0);
        assert!(figures.is_reached());
        let text = render(std::slice::from_ref(&figures));
        assert!(text.contains("NO"), "{text}");
        assert!(text.ends_with("speed targets missed: 2"), "{text}");
    }

    #[test]
    fn json_has_the_same_figures_as_the_table() {
        let json = kill(300.0).to_json();
        assert_eq!(json["reached"], false);
        assert_eq!(json["figures"][0]["reached"], Value::Null);
        assert_eq!(json["figures"][1]["target"]["at_most"], 250.0);
        assert_eq!(json["figures"][1]["reached"], false);
    }

    #[test]
    fn a_failed_measurement_reaches_no_target() {
        let failed = Figures::failed("copy".into(), "no disk".into());
        assert!(!failed.is_reached());
        assert!(render(&[failed]).contains("FAILED: no disk"));
    }

    #[test]
    fn an_exclusive_bound_excludes_the_bound_itself() {
        let mut figures = Figures::of("idle".into());
        figures.below("cpu", 1.0, "%", 1.0);
        assert!(!figures.is_reached());
    }
}
