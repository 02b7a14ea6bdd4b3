//! The stream between the two replicas of a shard, at either end.

use crate::world::SEAL;
use kv_core::replica::{Pumped, StreamError};
use kv_protocol::frame::{Frame, FrameBuffer};
use kv_protocol::ids::{GroupId, Time};
use kv_protocol::peer_message::{
    BatchReader, PeerHello, PeerRefusal, PeerRefusalReason, PeerWelcome, opcode as peer_opcode,
};

use super::answers::collected;
use super::connection::NO_GROUP;
use super::dial::REDIAL_FIRST;
use super::{Hosted, Output, Shard};
use crate::invariants::{copy_is_equal, nothing_old, streams_are_whole};
use crate::network::ConnectionNumber;

impl Shard {
    /// Handles the frames of a stream. Returns false if it must be closed.
    pub(super) fn stream(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        input: &mut FrameBuffer,
        group: &mut GroupId,
        output: &mut Vec<Output>,
    ) -> bool {
        while let Some(frame) = input.next_frame().expect("it was written so") {
            if let Err(refusal) = self.frame(now, number, frame, group, output) {
                if let Some(refusal) = refusal {
                    let mut bytes = Vec::new();
                    refusal.write(&mut bytes);
                    output.push(Output::Send(number, bytes));
                }
                return false;
            }
        }
        true
    }

    /// Handles one frame. An error ends the stream, with a refusal if one is to be sent.
    fn frame(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        frame: Frame<'_>,
        group: &mut GroupId,
        output: &mut Vec<Output>,
    ) -> Result<(), Option<PeerRefusal>> {
        match (frame.opcode, *group == NO_GROUP) {
            (peer_opcode::PEER_HELLO, true) => {
                let hello = PeerHello::read(frame.body, &SEAL).expect("it was written so");
                let welcome = self.on_hello(now, number, &hello, output)?;
                let mut bytes = Vec::new();
                welcome.write(&mut bytes);
                output.push(Output::Send(number, bytes));
                *group = hello.group();
                Ok(())
            }
            (peer_opcode::PEER_WELCOME, false) => {
                let welcome = PeerWelcome::read(frame.body).expect("it was written so");
                self.on_welcome(now, number, *group, &welcome, output)
            }
            (peer_opcode::PEER_REFUSAL, false) => {
                let refusal = PeerRefusal::read(frame.body).expect("it was written so");
                if let Some(hosted) = self.stream_of(number, *group) {
                    let answers = &mut collected(output, *group);
                    hosted.replica.on_peer_refusal(now, &refusal, answers);
                }
                Err(None)
            }
            (peer_opcode::BATCH, false) => self.on_batch(now, number, *group, frame.body, output),
            _ => Err(None),
        }
    }

    fn stream_of(&mut self, number: ConnectionNumber, group: GroupId) -> Option<&mut Hosted> {
        self.hosted_of(group).filter(|hosted| hosted.stream == Some(number))
    }

    fn on_hello(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        hello: &PeerHello,
        output: &mut Vec<Output>,
    ) -> Result<PeerWelcome, PeerRefusal> {
        let stranger = PeerRefusal { reason: PeerRefusalReason::Stranger, view: None };
        let group = hello.group();
        self.hosted_of(group).ok_or(stranger)?.replica.judge_hello(hello)?;
        self.close_stream(now, group, output);
        let hosted = self.hosted_of(group).ok_or(stranger)?;
        let answers = &mut collected(output, group);
        let welcome = hosted.replica.on_peer_hello(now, hello, answers)?;
        (hosted.stream, hosted.dialled) = (Some(number), None);
        Ok(welcome)
    }

    fn on_welcome(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        welcome: &PeerWelcome,
        output: &mut Vec<Output>,
    ) -> Result<(), Option<PeerRefusal>> {
        let hosted = self.stream_of(number, group).ok_or(None)?;
        let answers = &mut collected(output, group);
        let taken = hosted.replica.on_peer_welcome(now, welcome, answers);
        taken.map_err(|error| {
            let result = streams_are_whole::refused(group, &error, false);
            output.extend(result.err().map(Output::Broken));
            None
        })
    }

    fn on_batch(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        body: &[u8],
        output: &mut Vec<Output>,
    ) -> Result<(), Option<PeerRefusal>> {
        for message in BatchReader::new(body).expect("it was written so") {
            let message = message.expect("it was written so");
            let Some(hosted) = self.stream_of(number, group) else { return Err(None) };
            let installed = hosted.replica.view_version();
            let answers = &mut collected(output, group);
            match hosted.replica.on_peer_message(now, &message, answers) {
                Ok(()) => {
                    let result = nothing_old::message(group, message.view(), installed);
                    output.extend(result.err().map(Output::Broken));
                }
                Err(StreamError::Frozen) => {}
                Err(error) => {
                    let view = hosted.replica.view().copied();
                    let is_of_the_dead = view.is_some_and(|view| {
                        let holders = [view.primary, view.other()];
                        holders.iter().flatten().any(|holder| self.told_dead.contains(holder))
                    });
                    let result = streams_are_whole::refused(group, &error, is_of_the_dead);
                    output.extend(result.err().map(Output::Broken));
                    if let StreamError::Diverged { sn } = error {
                        output.push(Output::Broken(copy_is_equal::differs(group, sn)));
                    }
                    let reason = match error {
                        StreamError::View { .. } => PeerRefusalReason::OldView,
                        StreamError::OutOfMemory { .. } | StreamError::CopyBeyondLimit { .. } => {
                            PeerRefusalReason::NoMemory
                        }
                        _ => PeerRefusalReason::BrokenStream,
                    };
                    return Err(Some(PeerRefusal { reason, view }));
                }
            }
            if let Some(hosted) = self.stream_of(number, group)
                && let Some(dial) = &mut hosted.dial
            {
                dial.pause = REDIAL_FIRST;
            }
        }
        Ok(())
    }

    /// Closes the stream of a group, if there is one.
    pub(super) fn close_stream(&mut self, now: Time, group: GroupId, output: &mut Vec<Output>) {
        let Some(hosted) = self.hosted_of(group) else { return };
        let Some(old) = hosted.stream.take() else { return };
        hosted.replica.on_stream_down(now, &mut collected(output, group));
        self.end(old, output);
        self.connections.retain(|(known, _)| *known != old);
    }

    /// Handles the end of a stream's connection.
    pub(super) fn drop_stream(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        output: &mut Vec<Output>,
    ) {
        for hosted in &mut self.hosted {
            if hosted.stream == Some(number) {
                (hosted.stream, hosted.dialled) = (None, None);
                if let Some(dial) = &mut hosted.dial {
                    dial.due.get_or_insert(0);
                }
                let group = hosted.replica.group();
                hosted.replica.on_stream_down(now, &mut collected(output, group));
            }
        }
    }

    pub(super) fn pump(&mut self, now: Time, output: &mut Vec<Output>) {
        for hosted in &mut self.hosted {
            let Some(number) = hosted.stream else { continue };
            loop {
                let mut bytes = Vec::new();
                let pumped = hosted.replica.pump(now, &mut bytes);
                if !bytes.is_empty() {
                    output.push(Output::Send(number, bytes));
                }
                if pumped == Pumped::Done {
                    break;
                }
            }
        }
    }
}
