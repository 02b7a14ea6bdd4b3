//! Connections: the identity of the other side, and the requests of clients.

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{GROUPS_OF_A_SERVER, Hello, Request, SessionStart, Welcome};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, GroupId, Time};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_PEER_BODY, MAX_VALUE_BYTES};

use super::answers::{collected, look_at_answer, wrong_view};
use super::{Output, Shard};
use crate::network::ConnectionNumber;

const CLIENT_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
pub(super) const STREAM_RULES: FrameRules = FrameRules::checked(MAX_PEER_BODY);

/// The state of a connection's other side.
#[derive(Debug)]
pub(super) enum Peer {
    /// Accepted; no bytes received yet.
    Unknown(FrameBuffer),
    Client(FrameBuffer, ClientId),
    /// Accepted or dialled for a group's stream. The hello on an accepted one names the group.
    Stream(FrameBuffer, GroupId),
}

/// The group of a stream whose hello has not arrived.
pub(super) const NO_GROUP: GroupId = GroupId(u16::MAX);

impl Peer {
    /// Takes bytes. The first opcode distinguishes a client from a server.
    fn take(&mut self, bytes: &[u8]) {
        match self {
            Peer::Client(input, _) | Peer::Stream(input, _) => input.extend(bytes),
            Peer::Unknown(input) => {
                input.extend(bytes);
                let Some(is_client) = input.waiting().get(5).map(|opcode| *opcode < 0x40) else {
                    return;
                };
                let unchecked = std::mem::replace(input, FrameBuffer::new(STREAM_RULES));
                let rules = if is_client { CLIENT_RULES } else { STREAM_RULES };
                let mut input = FrameBuffer::new(rules);
                input.extend(&unchecked.into_waiting());
                *self = match is_client {
                    true => Peer::Client(input, ClientId(0)),
                    false => Peer::Stream(input, NO_GROUP),
                };
            }
        }
    }
}

impl Shard {
    pub(super) fn on_bytes(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        bytes: &[u8],
        output: &mut Vec<Output>,
    ) {
        let at = match self.connections.iter().position(|(known, _)| *known == number) {
            Some(at) => at,
            // The connection was closed here while these bytes were in transit.
            None if self.ended.contains(&number) => return,
            None => {
                let input = FrameBuffer::new(CLIENT_RULES);
                self.connections.push((number, Peer::Unknown(input)));
                self.connections.len() - 1
            }
        };
        let (_, mut peer) = self.connections.swap_remove(at);
        peer.take(bytes);
        let stays = match &mut peer {
            Peer::Client(input, client) => self.serve(now, number, input, client, output),
            Peer::Stream(input, group) => self.stream(now, number, input, group, output),
            Peer::Unknown(_) => true,
        };
        if stays {
            self.connections.push((number, peer));
        } else {
            self.drop_stream(now, number, output);
            self.end(number, output);
        }
    }

    /// Returns the WELCOME for a client.
    fn welcome(&self) -> Vec<u8> {
        let mut starts = [SessionStart::default(); GROUPS_OF_A_SERVER];
        for (start, hosted) in starts.iter_mut().zip(&self.hosted) {
            let (group, committed) = (hosted.replica.group(), hosted.replica.session_start());
            *start = SessionStart { group, committed };
        }
        let placement = self.identity.placement;
        let mut bytes = Vec::new();
        Welcome {
            cluster: self.identity.cluster,
            server: None,
            servers: placement.servers(),
            shards: placement.shards(),
            max_value: u32::try_from(MAX_VALUE_BYTES).expect("16 MiB fit 32 bits"),
            starts,
        }
        .write(&mut bytes);
        bytes
    }

    /// Returns whether a connection is a stream of another server.
    pub(super) fn is_stream(&self, number: ConnectionNumber) -> bool {
        let mut known = self.connections.iter();
        known.any(|(known, peer)| *known == number && matches!(peer, Peer::Stream(..)))
    }

    /// Closes a connection from this side.
    pub(super) fn end(&mut self, number: ConnectionNumber, output: &mut Vec<Output>) {
        self.ended.insert(number);
        output.push(Output::Close(number));
    }

    /// Serves the requests of a client. Returns false if its connection must be closed.
    fn serve(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        input: &mut FrameBuffer,
        client: &mut ClientId,
        output: &mut Vec<Output>,
    ) -> bool {
        while let Some(frame) = input.next_frame().expect("it was written so") {
            if *client == ClientId(0) {
                let Ok(hello) = Hello::read(frame.body) else { return false };
                *client = hello.client;
                output.push(Output::Send(number, self.welcome()));
                continue;
            }
            let Ok(request) = Request::read(frame.opcode, frame.body) else { return false };
            let (group, shard) = self.identity.placement.locate(request.digest);
            let is_here = shard == self.identity.shard;
            let Some(hosted) = self.hosted_of(group).filter(|_| is_here) else {
                output.push(Output::Send(number, wrong_view(&request)));
                continue;
            };
            let id = ConnectionId(number.0 as u64);
            let answers = &mut collected(output, group);
            hosted.replica.on_request(now, id, *client, &request, answers);
            look_at_answer(now, &hosted.replica, &request, output);
            self.begin_reading(group, &request);
        }
        true
    }
}
