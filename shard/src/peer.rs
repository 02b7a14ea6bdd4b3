//! The state machines for both ends of a stream between two servers, for one shard of one group.
//!
//! ```text
//!   Dialled (primary, or handing over):   CHALLENGE out, PROOF in,  PEER-HELLO out, PEER-WELCOME in,  batches
//!   Accepted (secondary, candidate, ...): CHALLENGE in,  PROOF out, PEER-HELLO in,  PEER-WELCOME out, batches
//! ```
//!
//! Until the other end has proved that it has the cluster's key ([`kv_protocol::key`]), its frames have no effect on a
//! replica.
//!
//! This module does not produce the messages after the welcome: the shard pumps its replicas once per wake-up
//! ([`Service::pump`]).

use kv_core::replica::ConnectionId;
use kv_protocol::frame::{Frame, FrameBuffer, FrameRules};
use kv_protocol::ids::{GroupId, Time};
use kv_protocol::key::{Challenge, Link, Nonce, Seal, opcode as key_opcode};
use kv_protocol::limits::{FRAME_DEADLINE, HELLO_DEADLINE, MAX_HELLO_BODY, MAX_PEER_BODY};
use kv_protocol::peer_message::{
    BatchReader, PeerHello, PeerRefusal, PeerRefusalReason, PeerWelcome, opcode as peer_opcode,
};

use crate::service::Service;

const HELLO_RULES: FrameRules = FrameRules::checked(MAX_HELLO_BODY);
const STREAM_RULES: FrameRules = FrameRules::checked(MAX_PEER_BODY);
/// The capacity to which the input buffer of a stream is trimmed.
const KEPT_INPUT: usize = 256 << 10;

/// The input side of a stream; its output is in the [`Service`].
#[derive(Debug)]
pub(crate) struct Peer {
    input: FrameBuffer,
    id: ConnectionId,
    stage: Stage,
    /// The deadline of the handshake or of the partial frame.
    deadline: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// An accepted stream that waits for CHALLENGE.
    AwaitsChallenge,
    /// An accepted stream that has sent its PROOF and waits for PEER-HELLO.
    AwaitsHello(Seal),
    /// A stream that was dialled for this group with this nonce and waits for PROOF.
    AwaitsProof(GroupId, Nonce),
    /// A stream that was dialled for this group and waits for PEER-WELCOME.
    AwaitsWelcome(GroupId),
    /// The established stream of this group.
    Streams(GroupId),
}

impl Peer {
    /// Creates the accepting end.
    pub(crate) fn accepted(now: Time, id: ConnectionId) -> Peer {
        Peer {
            input: FrameBuffer::new(HELLO_RULES),
            id,
            stage: Stage::AwaitsChallenge,
            deadline: Some(now + HELLO_DEADLINE),
        }
    }

    /// Creates the dialling end, connected at `now`, and sends its challenge at once.
    pub(crate) fn dialled(
        now: Time,
        id: ConnectionId,
        group: GroupId,
        service: &mut Service,
    ) -> Peer {
        // If there is no nonce, the connection ends at once and is dialled again.
        let nonce = service.draw_nonce().unwrap_or_else(|error| {
            service.count_refused(now, "peer stream", &error);
            service.outputs.kill(id);
            Nonce(0)
        });
        let challenge = Challenge { nonce, shard: service.identity.shard };
        service.outputs.append(id, |bytes| challenge.write(bytes));
        Peer {
            input: FrameBuffer::new(HELLO_RULES),
            id,
            stage: Stage::AwaitsProof(group, nonce),
            deadline: Some(now + HELLO_DEADLINE),
        }
    }

    /// Processes received bytes and the complete frames among them.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        let mut rest = received;
        let mut took_frames = false;
        loop {
            let is_closing = service.outputs.get(self.id).is_none_or(|output| output.is_closing());
            if is_closing {
                return;
            }
            let stage = match self.input.next_frame_of(&mut rest) {
                Ok(Some(frame)) => take_frame(now, self.id, self.stage, service, frame),
                Ok(None) => break,
                Err(error) => return self.fail(now, service, &error.to_string().into()),
            };
            took_frames = true;
            match stage {
                Ok(stage) => {
                    self.stage = stage;
                    if let Stage::AwaitsWelcome(_) | Stage::Streams(_) = stage {
                        self.input.set_rules(STREAM_RULES);
                    }
                }
                Err(end) => return self.fail(now, service, &end),
            }
        }
        self.input.extend(rest);
        self.input.trim(KEPT_INPUT);
        if let Stage::Streams(group) = self.stage
            && !took_frames
        {
            service.handle_part_of_peer_message(now, group, self.id);
        }
        if !matches!(self.stage, Stage::Streams(_)) {
            // The handshake as a whole has one deadline.
        } else if !self.input.is_partial() {
            if took_frames {
                self.deadline = None;
            }
        } else if took_frames || self.deadline.is_none() {
            self.deadline = Some(now + FRAME_DEADLINE);
        }
    }

    /// Returns whether the other end of an accepted stream has not yet proved that it has the cluster's key.
    pub(crate) fn is_stranger(&self) -> bool {
        matches!(self.stage, Stage::AwaitsChallenge | Stage::AwaitsHello(_))
    }

    /// Returns the stage of the handshake as text.
    pub(crate) fn describe(&self) -> String {
        format!("{:?}", self.stage)
    }

    /// Returns when to close the stream because its input is incomplete.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Detaches the stream from its replica when the connection ends.
    pub(crate) fn handle_closed(&self, now: Time, service: &mut Service) {
        match self.stage {
            Stage::AwaitsChallenge | Stage::AwaitsHello(_) => {}
            Stage::AwaitsProof(group, _) | Stage::AwaitsWelcome(group) | Stage::Streams(group) => {
                service.handle_stream_closed(now, group, self.id);
            }
        }
    }

    /// Ends a stream after an invalid frame or a rejection. Sends a rejection if this end accepted the stream or the
    /// handshake is complete.
    fn fail(&mut self, now: Time, service: &mut Service, end: &End) {
        if let Some(words) = &end.words {
            service.count_refused(now, "peer stream", words);
        }
        if !matches!(self.stage, Stage::AwaitsProof(..) | Stage::AwaitsWelcome(_)) {
            let reason = match self.stage {
                Stage::AwaitsChallenge | Stage::AwaitsHello(_) => PeerRefusalReason::Stranger,
                _ => PeerRefusalReason::BrokenStream,
            };
            let refusal = end.refusal.unwrap_or(PeerRefusal { reason, view: None });
            service.outputs.append(self.id, |bytes| refusal.write(bytes));
        }
        if let Some(output) = service.outputs.get(self.id) {
            output.close_after_last_words(now);
        }
        service.outputs.mark_dirty(self.id);
    }
}

/// The reason why a stream ends.
struct End {
    /// The rejection to send; `None` for the default of the stage.
    refusal: Option<PeerRefusal>,
    /// The text to log and to count as a rejection; `None` if the stream ends because of a newer view or a handover.
    words: Option<String>,
}

impl From<String> for End {
    fn from(words: String) -> End {
        End { refusal: None, words: Some(words) }
    }
}

/// Processes one frame; returns the next stage, or the reason why the stream ends.
fn take_frame(
    now: Time,
    id: ConnectionId,
    stage: Stage,
    service: &mut Service,
    frame: Frame<'_>,
) -> Result<Stage, End> {
    match (stage, frame.opcode) {
        (Stage::AwaitsChallenge, key_opcode::CHALLENGE) => {
            let challenge = Challenge::read(frame.body).map_err(|error| error.to_string())?;
            let own = service.draw_nonce()?;
            let seal = Seal::new(service.key(), Link::Stream, challenge.nonce, own);
            service.outputs.append(id, |bytes| seal.write_proof(bytes));
            Ok(Stage::AwaitsHello(seal))
        }
        (Stage::AwaitsProof(group, own), key_opcode::PROOF) => {
            let seal = Seal::from_proof(service.key(), Link::Stream, own, frame.body)
                .map_err(|error| format!("the stream of group {group} was not opened: {error}"))?;
            match service.peer_hello(group) {
                Some(hello) => service.outputs.append(id, |bytes| hello.write(&seal, bytes)),
                // The view that required this stream is no longer installed.
                None => service.outputs.kill(id),
            }
            Ok(Stage::AwaitsWelcome(group))
        }
        // Until the acceptor has sent its proof, its claims have no effect. In particular, its newer view is not
        // installed.
        (Stage::AwaitsProof(group, _), peer_opcode::PEER_REFUSAL) => {
            let refusal = PeerRefusal::read(frame.body).map_err(|error| error.to_string())?;
            Err(format!("the stream of group {group} was rejected: {}", refusal.reason).into())
        }
        (Stage::AwaitsHello(seal), peer_opcode::PEER_HELLO) => {
            let hello = PeerHello::read(frame.body, &seal).map_err(|error| error.to_string())?;
            match service.handle_peer_hello(now, id, &hello) {
                Ok(welcome) => service.outputs.append(id, |bytes| welcome.write(bytes)),
                Err(refusal) => {
                    let words = format!(
                        "stream of group {} shard {} from {}: {}",
                        hello.view.group, hello.shard, hello.from, refusal.reason
                    );
                    service.count_refused(now, "peer stream", &words);
                    service.outputs.append(id, |bytes| refusal.write(bytes));
                    if let Some(output) = service.outputs.get(id) {
                        output.close_after_last_words(now);
                    }
                    return Ok(stage);
                }
            }
            Ok(Stage::Streams(hello.view.group))
        }
        (Stage::AwaitsWelcome(group), peer_opcode::PEER_WELCOME) => {
            let welcome = PeerWelcome::read(frame.body).map_err(|error| error.to_string())?;
            service.handle_peer_welcome(now, group, id, &welcome)?;
            Ok(Stage::Streams(group))
        }
        (Stage::AwaitsWelcome(group) | Stage::Streams(group), peer_opcode::PEER_REFUSAL) => {
            let refusal = PeerRefusal::read(frame.body).map_err(|error| error.to_string())?;
            service.handle_peer_refusal(now, group, id, &refusal);
            let is_known = matches!(
                refusal.reason,
                PeerRefusalReason::OldView | PeerRefusalReason::HandedOver
            );
            let newer = refusal.view.map_or(String::new(), |view| {
                format!("; it has view {} of the group", view.version)
            });
            let words =
                format!("the stream of group {group} was rejected: {}{newer}", refusal.reason);
            Err(End { refusal: None, words: (!is_known).then_some(words) })
        }
        (Stage::Streams(group), peer_opcode::BATCH) => {
            let mut batch = BatchReader::new(frame.body).map_err(|error| error.to_string())?;
            let mut at_hand = 0;
            loop {
                if at_hand == 0 {
                    at_hand = service.look_ahead_in_batch(group, batch.clone());
                }
                at_hand -= 1;
                let Some(message) = batch.next() else { break };
                let message = message.map_err(|error| error.to_string())?;
                let taken = service.handle_peer_message(now, group, id, &message);
                taken.map_err(|(refusal, words)| {
                    let is_old = refusal.reason == PeerRefusalReason::OldView;
                    End { refusal: Some(refusal), words: (!is_old).then_some(words) }
                })?;
            }
            Ok(stage)
        }
        (_, opcode) => Err(format!(
            "opcode {opcode:#04x} is not valid at this stage of a stream between servers \
             (expected CHALLENGE, then PEER-HELLO, then BATCH)"
        )
        .into()),
    }
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
