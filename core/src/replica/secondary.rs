//! The receiving end of the stream: apply in order, at once, and ack what is applied.

use std::cmp::Ordering;

use kv_protocol::ids::{SequenceNumber, Time};
use kv_protocol::limits::MAX_VIEW_STEP;
use kv_protocol::peer_message::{
    Ack, CompletionRecord, Effect, Fragment, PeerHello, PeerRefusal, PeerRefusalReason,
    PeerWelcome, Prepare,
};

use super::{Answers, Replica, Role, StreamError};
use crate::table::{Staged, Table};

/// What a secondary knows beside table and sessions.
#[derive(Debug, Default)]
pub(super) struct Secondary {
    /// The last write applied.
    pub(super) last: SequenceNumber,
    /// Whether a stream stands.
    pub(super) connected: bool,
    /// The write last + 1, while its value is still coming in fragments.
    partial: Option<Partial>,
    /// The newest `t_send` that has not been acked.
    owed: Option<Time>,
}

/// A write whose value has not come in full.
#[derive(Debug)]
struct Partial {
    staged: Staged,
    record: CompletionRecord,
    missing: usize,
    /// When its PREPARE was sent: what the ack of the whole write echoes.
    t_send: Time,
}

impl Secondary {
    /// Notes that an ack is due.
    pub(super) fn owe_ack(&mut self, t_send: Time) {
        self.owed = Some(self.owed.map_or(t_send, |owed| owed.max(t_send)));
    }

    /// Drops a half-received value: the stream that would bring the rest is gone.
    pub(super) fn abandon_partial(&mut self, table: &mut Table) {
        if let Some(partial) = self.partial.take() {
            table.discard(partial.staged);
        }
    }
}

impl Replica {
    /// Whether a hello may come from this replica's primary. The driver asks before it gives up a
    /// stream that stands for the new one.
    ///
    /// # Errors
    /// The refusal to send before closing.
    pub fn judge_hello(&self, hello: &PeerHello) -> Result<(), PeerRefusal> {
        let refuse = |reason| Err(PeerRefusal { reason, view: self.view });
        let installed = self.view_version();
        let is_ours = hello.view.group == self.config.group
            && hello.shard == self.config.shard
            && hello.shards == self.config.placement.shards()
            && hello.to == self.config.me
            && hello.view.primary == Some(hello.from)
            && hello.view.other() == Some(self.config.me)
            && !matches!(self.role, Role::Primary(_));
        if !is_ours || hello.view.version.0.saturating_sub(installed.0) > MAX_VIEW_STEP {
            return refuse(PeerRefusalReason::Stranger);
        }
        if self.frozen {
            return refuse(PeerRefusalReason::Stopping);
        }
        match hello.view.version.cmp(&installed) {
            Ordering::Less => refuse(PeerRefusalReason::OldView),
            Ordering::Equal if self.view != Some(hello.view) => refuse(PeerRefusalReason::Stranger),
            Ordering::Equal | Ordering::Greater => Ok(()),
        }
    }

    /// A primary has dialled: judges its hello, installs its view if it is new here, and says where
    /// the stream goes on. The driver has closed any earlier stream of this replica.
    ///
    /// # Errors
    /// The refusal to send before closing.
    pub fn on_peer_hello(
        &mut self,
        hello: &PeerHello,
        answers: &mut impl Answers,
    ) -> Result<PeerWelcome, PeerRefusal> {
        self.judge_hello(hello)?;
        let stranger = PeerRefusal { reason: PeerRefusalReason::Stranger, view: self.view };
        self.install(hello.view, answers).map_err(|_| stranger)?;
        let Role::Secondary(secondary) = &mut self.role else { return Err(stranger) };
        secondary.abandon_partial(&mut self.table);
        secondary.connected = true;
        secondary.owed = None;
        Ok(PeerWelcome { view: hello.view.version, last: secondary.last })
    }

    /// What to ack after the messages of one wake-up, if anything.
    pub fn take_ack(&mut self) -> Option<Ack> {
        let view = self.view_version();
        match &mut self.role {
            Role::Secondary(secondary) => {
                let echo = secondary.owed.take()?;
                Some(Ack { view, sn: secondary.last, echo })
            }
            Role::Idle | Role::Primary(_) => None,
        }
    }

    pub(super) fn on_prepare(
        &mut self,
        now: Time,
        prepare: &Prepare<'_>,
    ) -> Result<(), StreamError> {
        let Role::Secondary(secondary) = &mut self.role else { return Err(StreamError::WrongEnd) };
        let sn = prepare.sn;
        if sn <= secondary.last {
            // Sent again after a reconnect: applied already, acked once more.
            secondary.owe_ack(prepare.t_send);
            return Ok(());
        }
        let expected = secondary.last.next();
        if sn != expected || secondary.partial.is_some() {
            return Err(StreamError::Gap { expected, got: sn });
        }
        let place = (self.config.group, self.config.shard);
        let hash = self.config.hash_secret.of_key(prepare.digest, prepare.key);
        if !prepare.key.is_empty() && self.config.placement.locate(prepare.digest) != place {
            return Err(StreamError::ForeignKey { sn });
        }
        match prepare.effect {
            Effect::Put => {
                let length = prepare.value_length as usize;
                let mut staged = self
                    .table
                    .stage(hash, prepare.key, length)
                    .map_err(|_| StreamError::OutOfMemory { sn })?;
                self.table.staged_append(&mut staged, prepare.value);
                let missing = length - prepare.value.len();
                secondary.owe_ack(prepare.t_send);
                if missing > 0 {
                    let Prepare { record, t_send, .. } = *prepare;
                    secondary.partial = Some(Partial { staged, record, missing, t_send });
                    return Ok(());
                }
                self.table.commit(staged, sn);
                self.sessions.record(now, sn, prepare.record);
            }
            Effect::Delete => {
                self.table.remove(hash, prepare.key);
                self.sessions.record(now, sn, prepare.record);
            }
            Effect::Nothing => self.sessions.record(now, sn, prepare.record),
            Effect::ForgetSession => self.sessions.forget(prepare.record.client),
        }
        secondary.last = sn;
        secondary.owe_ack(prepare.t_send);
        Ok(())
    }

    pub(super) fn on_fragment(
        &mut self,
        now: Time,
        fragment: &Fragment<'_>,
    ) -> Result<(), StreamError> {
        let Role::Secondary(secondary) = &mut self.role else { return Err(StreamError::WrongEnd) };
        let sn = fragment.sn;
        if sn <= secondary.last {
            return Ok(());
        }
        let wrong = StreamError::Fragment { sn };
        let Some(partial) = &mut secondary.partial else { return Err(wrong) };
        let received = self.table.staged_entry(&partial.staged).1.len();
        if sn != secondary.last.next()
            || fragment.offset as usize != received
            || fragment.bytes.len() > partial.missing
        {
            return Err(wrong);
        }
        self.table.staged_append(&mut partial.staged, fragment.bytes);
        partial.missing -= fragment.bytes.len();
        if partial.missing == 0 {
            let whole = secondary.partial.take().expect("it was just filled");
            self.table.commit(whole.staged, sn);
            self.sessions.record(now, sn, whole.record);
            secondary.last = sn;
            secondary.owe_ack(whole.t_send);
        }
        Ok(())
    }
}
