//! Responses to clients: their collection, and the checks on them.

use kv_core::replica::{Answers, ConnectionId, Replica};
use kv_protocol::client_message::{Answer, Operation, Request, Status};
use kv_protocol::ids::{GroupId, RequestId, SequenceNumber, Time, ViewVersion};

use super::Output;
use crate::invariants::{lease_is_checked, only_primaries_answer};
use crate::network::ConnectionNumber;

/// A response to a client.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// The group that responded.
    pub group: GroupId,
    /// The connection.
    pub to: ConnectionNumber,
    /// The request.
    pub request: RequestId,
    /// The status.
    pub status: Status,
    /// The number of copies that it reports.
    pub copies: u8,
    /// The log position, for a write that was done.
    pub version: SequenceNumber,
}

impl Answered {
    /// Returns whether it acknowledges a write. Only responses to writes report copies.
    pub fn is_acked(&self) -> bool {
        self.copies > 0 && self.status == Status::Ok
    }
}

/// Collects the responses to one input.
pub(super) struct Collected<'a> {
    output: &'a mut Vec<Output>,
    group: GroupId,
}

impl Answers for Collected<'_> {
    fn answer(&mut self, to: ConnectionId, answer: &Answer<'_>) {
        let mut bytes = Vec::new();
        answer.write(&mut bytes);
        let number = usize::try_from(to.0).expect("it was one");
        self.output.push(Output::Answered(Answered {
            group: self.group,
            to: ConnectionNumber(number),
            request: answer.id,
            status: answer.status,
            copies: answer.copies,
            version: answer.version,
        }));
        self.output.push(Output::Send(ConnectionNumber(number), bytes));
    }
}

pub(super) fn collected(output: &mut Vec<Output>, group: GroupId) -> Collected<'_> {
    Collected { output, group }
}

/// Checks that a replica may send the response that it has just sent.
pub(super) fn look_at_answer(
    now: Time,
    replica: &Replica,
    request: &Request<'_>,
    output: &mut Vec<Output>,
) {
    let answered = output.iter().rev().find_map(|output| match output {
        Output::Answered(answered) if answered.request == request.id => Some(*answered),
        _ => None,
    });
    let Some(Answered { status, group, .. }) = answered else { return };
    let sight = replica.inspect();
    let result = only_primaries_answer::check(group, &sight, status).and_then(|()| {
        match request.operation {
            Operation::Get | Operation::GetPart(_) => {
                lease_is_checked::check(group, &sight, now, status)
            }
            _ => Ok(()),
        }
    });
    output.extend(result.err().map(Output::Broken));
}

pub(super) fn wrong_view(request: &Request<'_>) -> Vec<u8> {
    let answer = Answer {
        id: request.id,
        status: Status::WrongView,
        copies: 0,
        view: ViewVersion(0),
        version: SequenceNumber::ZERO,
        value: &[],
        whole: 0,
    };
    let mut bytes = Vec::new();
    answer.write(&mut bytes);
    bytes
}
