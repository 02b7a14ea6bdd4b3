//! The log of a client, for example of lost connections and new maps.

use std::fmt;
use std::sync::Arc;

use crate::events::Within;

/// The severity of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A failure, such as a lost connection.
    Warning,
    /// An infrequent event, such as a new map.
    Info,
    /// A detail for diagnosis.
    Debug,
}

type Take = dyn Fn(Level, &str) + Send + Sync;

/// The function that receives a client's messages, one line each; none by default. The function runs within calls of
/// the client, on the threads of the calls, and must not call the client.
#[derive(Clone, Default)]
pub struct Log(Option<Arc<Take>>);

impl Log {
    /// Returns whether a function is set.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Creates a log that passes each message to `take`.
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
