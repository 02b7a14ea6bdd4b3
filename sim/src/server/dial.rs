//! Dialling: every replica gets the stream that it needs, with retries.

use std::net::SocketAddr;

use crate::world::SEAL;
use kv_protocol::frame::FrameBuffer;
use kv_protocol::ids::{GroupId, Time, ViewVersion};

use super::connection::{Peer, STREAM_RULES};
use super::{Output, Shard};
use crate::network::ConnectionNumber;

/// The first and the longest back-off between two dials, in nanoseconds of true time.
pub(super) const REDIAL_FIRST: u64 = 1_000_000;
const REDIAL_LAST: u64 = 100_000_000;

/// A replica's attempts to reach its partner.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) address: SocketAddr,
    pub(super) view: ViewVersion,
    /// The true time of the next attempt; `None`: dialling, or connected.
    pub(super) due: Option<u64>,
    pub(super) pause: u64,
}

impl Dial {
    pub(super) fn retry(&mut self, true_now: u64) {
        self.due = Some(true_now + self.pause);
        self.pause = (self.pause * 2).min(REDIAL_LAST);
    }
}

impl Shard {
    /// Gives every replica the stream that it needs, and closes any other that it has dialled.
    pub(super) fn keep_streams(&mut self, true_now: u64, now: Time, output: &mut Vec<Output>) {
        let cluster = self.identity.cluster;
        for at in 0..self.hosted.len() {
            let hosted = &mut self.hosted[at];
            let group = hosted.replica.group();
            let wanted = hosted.replica.peer_hello(cluster);
            if hosted.dialled.is_some() && hosted.dialled != wanted {
                (hosted.dialled, hosted.dial) = (None, None);
                self.close_stream(now, group, output);
            }
            let hosted = &mut self.hosted[at];
            match (wanted, hosted.partner) {
                (Some(hello), Some((_, address))) => {
                    let is_new = hosted.dial.as_ref().is_none_or(|dial| {
                        dial.address != address || dial.view != hello.view.version
                    });
                    if is_new {
                        let view = hello.view.version;
                        let due = Some(true_now);
                        hosted.dial = Some(Dial { address, view, due, pause: REDIAL_FIRST });
                    }
                }
                _ => hosted.dial = None,
            }
            if let Some(dial) = &mut hosted.dial {
                if dial.due == Some(0) {
                    dial.retry(true_now);
                }
                if dial.due.is_some_and(|due| due <= true_now) {
                    dial.due = None;
                    output.push(Output::Dial(group, dial.address));
                }
            }
        }
    }

    /// Handles a dialled connection: sends its hello, if the stream is still needed.
    pub(super) fn on_dialled(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        output: &mut Vec<Output>,
    ) {
        let cluster = self.identity.cluster;
        let hello = self.hosted_of(group).and_then(|hosted| hosted.replica.peer_hello(cluster));
        let Some(hello) = hello else { return output.push(Output::Close(number)) };
        self.close_stream(now, group, output);
        let hosted = self.hosted_of(group).expect("it was there");
        (hosted.stream, hosted.dialled) = (Some(number), Some(hello));
        let mut bytes = Vec::new();
        hello.write(&SEAL, &mut bytes);
        output.push(Output::Send(number, bytes));
        let input = FrameBuffer::new(STREAM_RULES);
        self.connections.push((number, Peer::Stream(input, group)));
    }
}
