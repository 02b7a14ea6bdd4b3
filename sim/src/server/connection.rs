//! Connections: who is at the other side, and what a client asks.

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Hello, Request};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClientId, GroupId, Time};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_PEER_BODY};

use super::answers::{collected, look_at_answer, wrong_view};
use super::{Output, Shard};
use crate::network::ConnectionNumber;

const CLIENT_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
pub(super) const STREAM_RULES: FrameRules = FrameRules::checked(MAX_PEER_BODY);

/// What is known of the other side of a connection.
#[derive(Debug)]
pub(super) enum Peer {
    /// Accepted; nothing said yet.
    Unknown(FrameBuffer),
    Client(FrameBuffer, ClientId),
    /// Accepted or dialled for a group's stream; dialled ones wait for the welcome first.
    Stream(FrameBuffer, GroupId, bool),
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
            None => {
                let input = FrameBuffer::new(FrameRules::unchecked(MAX_CLIENT_BODY));
                self.connections.push((number, Peer::Unknown(input)));
                self.connections.len() - 1
            }
        };
        let (_, mut peer) = self.connections.swap_remove(at);
        if let Peer::Unknown(input) = &mut peer {
            input.extend(bytes);
            // The first byte of an opcode tells a client from a server.
            let is_client = input.waiting().get(5).is_some_and(|opcode| *opcode < 0x40);
            let waiting = std::mem::replace(input, FrameBuffer::new(STREAM_RULES)).into_waiting();
            let mut input = FrameBuffer::new(if is_client { CLIENT_RULES } else { STREAM_RULES });
            input.extend(&waiting);
            peer = match is_client {
                true => Peer::Client(input, ClientId(0)),
                false => Peer::Stream(input, GroupId(u16::MAX), false),
            };
        } else if let Peer::Client(input, _) | Peer::Stream(input, ..) = &mut peer {
            input.extend(bytes);
        }
        let stays = match &mut peer {
            Peer::Client(input, client) => self.serve(now, number, input, client, output),
            Peer::Stream(input, group, welcomed) => {
                self.stream(now, number, input, group, welcomed, output)
            }
            Peer::Unknown(_) => true,
        };
        if stays {
            self.connections.push((number, peer));
        } else {
            self.drop_stream(now, number, output);
            output.push(Output::Close(number));
        }
    }

    /// Serves the requests of a client; `false` ends its connection.
    fn serve(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        input: &mut FrameBuffer,
        client: &mut ClientId,
        output: &mut Vec<Output>,
    ) -> bool {
        while let Ok(Some(frame)) = input.next_frame() {
            if *client == ClientId(0) {
                let Ok(hello) = Hello::read(frame.body) else { return false };
                *client = hello.client;
                continue;
            }
            let Ok(request) = Request::read(frame.opcode, frame.body) else { return false };
            let (group, shard) = self.identity.placement.locate(request.digest);
            let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == group);
            let Some(hosted) = hosted.filter(|_| shard == self.identity.shard) else {
                let answer = wrong_view(&request);
                output.push(Output::Send(number, answer));
                continue;
            };
            let id = ConnectionId(number.0 as u64);
            let answers = &mut collected(output, group);
            hosted.replica.on_request(now, id, *client, &request, answers);
            look_at_answer(now, &hosted.replica, &request, output);
        }
        true
    }
}
