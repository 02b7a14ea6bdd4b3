//! Long values, straight from the table to the socket.
//!
//! ```text
//!   received bytes  [ GET a | GET b | GET c | PUT d | ...
//!                     <--- a run of reads --->
//!   one send of     [ head | value a | head | value b | head | value c ]
//!                            ^ where it lies in the table
//! ```
//!
//! The copy into the output is saved, which for values of 16 KiB is a fifth of a server's time. The table is
//! borrowed until the send has returned, so that no value can change or go meanwhile; what did not fit the socket
//! is copied into the output after all. Only `--net uring` gives the outputs their sockets.

use std::io::IoSlice;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Request, opcode};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::Time;

use super::Service;
use crate::net::output::LONG_VALUE;

/// A send of less is not worth a system call of its own: it is copied, and sent with what comes of the same
/// wake-up.
const LEAST_SENT: usize = 32 << 10;
/// Most bytes that one connection is sent so in one wake-up; the rest goes through the output, which is bounded,
/// and out when the others have had their turn.
const MOST_SENT: usize = 256 << 10;
/// Most values of one send.
const MOST_VALUES: usize = MOST_SENT / LONG_VALUE;

/// The frames at the beginning of received bytes that were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
    /// Whether they are answered; if not, there is no use in looking at them again.
    pub(crate) is_answered: bool,
}

impl Service {
    /// Answers the run of reads at the beginning of these bytes, if their values are long and can be sent at
    /// once; whatever is unusual about a read ends the run and is left to [`Service::on_request`].
    pub(crate) fn answer_directly(
        &mut self,
        now: Time,
        id: ConnectionId,
        received: &[u8],
        rules: &FrameRules,
    ) -> Run {
        let mut run = Run::default();
        let Service { identity, outputs, counters, hosted, .. } = self;
        let Some(mut total) = outputs.before_direct(id) else { return run };
        let least = total + LEAST_SENT;
        let (mut heads, mut values) = (Vec::new(), Vec::new());
        while total < MOST_SENT
            && values.len() < MOST_VALUES
            && let Ok(Some(frame)) = split_frame(&received[run.bytes..], rules)
            && frame.opcode == opcode::GET
            && let Ok(request) = Request::read(frame.opcode, frame.body)
            && request.validate().is_ok()
            && let (group, shard) = identity.placement.locate(request.digest)
            && shard == identity.shard
            && let Some(hosted) = hosted.iter().find(|hosted| hosted.replica.group() == group)
            && let Some(answer) = hosted.replica.answer_to_get(now, &request)
            && (LONG_VALUE..=MOST_SENT - total).contains(&answer.value.len())
        {
            run.frames += 1;
            run.bytes += frame.consumed;
            total += answer.value.len();
            heads.push(answer.head());
            values.push(answer.value);
        }
        if total < least {
            return run;
        }
        let parts = heads.iter().zip(&values);
        let parts: Vec<IoSlice<'_>> =
            parts.flat_map(|(head, value)| [IoSlice::new(head), IoSlice::new(value)]).collect();
        outputs.send_directly(id, &parts);
        counters.requests += run.frames as u64;
        run.is_answered = true;
        run
    }
}
