//! The callers that wait for the end of this coordinator: `coord stop` and `coord detach`, connected to its socket.

use std::cell::RefCell;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::stop_port::Line;

/// The maximum number of callers that receive messages; further callers are rejected.
pub(super) const MAX_CALLERS: usize = 16;
/// The maximum number of lines queued for a caller. If the caller does not read them, further lines are dropped.
const MAX_LINES: usize = 64;
/// The timeout for delivering the last line to one caller.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The callers that wait for the end of this coordinator, each with the channel of its lines.
#[derive(Debug, Default)]
pub(super) struct Callers(RefCell<Vec<mpsc::Sender<Line>>>);

impl Callers {
    /// Sends a line to all callers.
    pub(super) fn say(&self, text: &str) {
        let line = Line::saying(text.to_owned());
        self.0.borrow_mut().retain(|caller| {
            // If the queue of a caller is full, the line is dropped for that caller.
            !matches!(caller.try_send(line.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    /// Sends the result of the stop to all callers, and waits for its delivery, for at most [`TIMEOUT`] each.
    pub(super) async fn end(&self, is_well: bool, text: &str) {
        let callers = self.0.take();
        let line = Line::last(text.to_owned(), is_well);
        for caller in callers {
            let told = async {
                let _ = caller.send(line.clone()).await;
                caller.closed().await;
            };
            let _ = timeout(TIMEOUT, told).await;
        }
    }

    /// Admits a caller, and returns the channel of its lines. Returns `None` if too many callers wait already.
    pub(super) fn enter(&self) -> Option<mpsc::Receiver<Line>> {
        let mut callers = self.0.borrow_mut();
        callers.retain(|caller| !caller.is_closed());
        if callers.len() >= MAX_CALLERS {
            return None;
        }
        let (sender, receiver) = mpsc::channel(MAX_LINES);
        callers.push(sender);
        Some(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_receive_the_result_and_their_number_is_limited() {
        let callers = Callers::default();
        let mut inside: Vec<_> = (0..MAX_CALLERS).map(|_| callers.enter().unwrap()).collect();
        assert!(callers.enter().is_none());
        let mut last = inside.pop().unwrap();
        inside.clear();
        for n in 0..2 * MAX_LINES {
            callers.say(&format!("line {n}"));
        }
        assert_eq!(callers.0.borrow().len(), 1, "callers that have disconnected are forgotten");
        // The last caller disconnects after it has received the result, for which `end` waits.
        let end = async move {
            let mut seen = 0;
            while let Some(line) = last.recv().await {
                seen += 1;
                if line.ended == Some(true) {
                    return (seen, line.say);
                }
            }
            panic!("no end");
        };
        let ((seen, said), ()) = tokio::join!(end, callers.end(true, "stopped"));
        assert_eq!((seen, &*said), (MAX_LINES + 1, "stopped"));
    }
}
