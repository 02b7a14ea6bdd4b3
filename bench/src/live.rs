//! A progress line on a terminal. If standard error is not a terminal, no line is shown.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The interval between two updates.
pub(crate) const EVERY: Duration = Duration::from_millis(200);

/// The progress line of a phase. See the module.
#[derive(Debug)]
pub(crate) struct Live {
    bar: ProgressBar,
    counted: u64,
}

impl Live {
    /// Creates the progress line of a phase that fills this many keys.
    pub(crate) fn filling(total: u64) -> Live {
        let style = "filling {bar:30} {pos}/{len} keys, {per_sec}, {eta} left";
        Live::new(ProgressBar::new(total), style)
    }

    /// Creates the progress line of a phase that ends by time or count.
    pub(crate) fn running() -> Live {
        Live::new(ProgressBar::new_spinner(), "{spinner} {elapsed} {msg}")
    }

    fn new(bar: ProgressBar, style: &str) -> Live {
        bar.set_style(ProgressStyle::with_template(style).expect("the template is right"));
        Live { bar, counted: 0 }
    }

    /// Shows the number of operations done, and their rate since the last call. The rate assumes that [`EVERY`] has
    /// passed since then.
    pub(crate) fn show(&mut self, done: u64, phase: &str) {
        self.bar.set_position(done);
        #[allow(clippy::cast_precision_loss)]
        let rate = (done - self.counted) as f64 / EVERY.as_secs_f64();
        self.bar.set_message(format!("{phase} {} ops/s", crate::numbers::short(rate)));
        self.bar.tick();
        self.counted = done;
    }

    /// Removes the line.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
    }
}
