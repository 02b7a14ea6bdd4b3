//! What a client tells about itself while it works: connections lost, maps taken, whom it asks.

use std::fmt;
use std::sync::Arc;

use crate::events::Within;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something is wrong that an operator should look at.
    Warning,
    /// What happens once in a while.
    Info,
    /// What helps to find out why.
    Debug,
}

type Take = dyn Fn(Level, &str) + Send + Sync;

/// Where a client's messages go, one line each; by default nowhere. It is called within the calls of the
/// client, on their thread, and must not call the client.
#[derive(Clone, Default)]
pub struct Log(Option<Arc<Take>>);

impl Log {
    /// Returns whether messages go anywhere.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Messages go to `take`.
    pub fn to(take: impl Fn(Level, &str) + Send + Sync + 'static) -> Log {
        Log(Some(Arc::new(take)))
    }

    pub(crate) fn write(&self, level: Level, words: impl FnOnce() -> String) {
        if let Some(take) = &self.0 {
            let words = words();
            let _within = Within::enter();
            take(level, &words);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Log(to a function)" } else { "Log(nowhere)" })
    }
}
