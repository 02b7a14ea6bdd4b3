//! Messages of the driver to the log, to the terminal and to callers.

use super::*;

impl Driver {
    /// Reports a message about a stop: on the terminal, in the log, and to the callers that wait for the end of the
    /// stop.
    pub(super) fn say(&self, text: &str) {
        self.console.say(text);
        self.callers.say(text);
    }

    /// Reports a warning to the same destinations as [`Driver::say`].
    pub(super) fn warn(&self, text: &str) {
        self.console.warn(text);
        self.callers.say(text);
    }

    /// Reports a failed order. A failure that repeats for the same reason is reported at intervals, and logged each
    /// time.
    pub(super) fn tell_failed(
        &self,
        member: Member,
        order: &'static str,
        reason: &str,
        again: bool,
    ) {
        let now = clock::now();
        let mut told = self.told_failures.borrow_mut();
        let known = told.get(&(member.server, order));
        if known.is_some_and(|(at, known)| known == reason && now.since(*at) < FAILURE_TOLD_EVERY) {
            return tracing::warn!("server {}: {order}: {}", member.server, printable(reason));
        }
        // At most one entry for each server and kind of order.
        told.insert((member.server, order), (now, reason.to_owned()));
        let (id, reason) = (member.server, printable(reason));
        let advice = if again { format!("; {DUMP_ADVICE}") } else { String::new() };
        self.warn(&format!("server {id} could not carry out {order}: {reason}{advice}"));
    }

    pub(super) fn tell_wait(&self, member: Member, why: StopWait) {
        let id = member.server;
        self.warn(&match why {
            StopWait::Silent(group) => format!(
                "the stop waits for server {id}, which is silent and may hold the only copy of group {group}; \
                 coord stop --force, or Ctrl+C again, ends the stop without it"
            ),
            StopWait::NoProgress => format!(
                "the stop waits for server {id}, which reports but has written nothing to its dumps for {} s; \
                 check the disk of its host",
                NO_PROGRESS.as_secs()
            ),
        });
    }

    pub(super) fn tell_given_up(&self, member: Member, group: GroupId, is_dumped: bool) {
        let elsewhere = match is_dumped {
            true => "another server has dumped the group",
            false => "no other dump of the group is complete so far",
        };
        let id = member.server;
        self.warn(&format!("given up: the copy of group {group} at server {id}; {elsewhere}"));
    }

    /// Warns about a store. A warning with the same reason is repeated at intervals.
    pub(super) fn warn_of_store(&self, reason: &str, words: &str) {
        let now = clock::now();
        let mut last = self.store_warning.borrow_mut();
        let is_due = last
            .as_ref()
            .is_none_or(|(said, at)| said != reason || now.since(*at) >= STORE_WARNING_INTERVAL);
        if is_due {
            *last = Some((reason.to_owned(), now));
            self.console.warn(&format!("storing the state: {words}"));
        }
    }

    pub(super) fn tell_view(&self, before: &View, view: &View) {
        let name = |member: Option<Member>| {
            member.map_or("no primary".to_owned(), |member| format!("server {}", member.server))
        };
        let other = match view.peer {
            Peer::None => "alone".to_owned(),
            Peer::Secondary(member) => format!("with secondary {}", member.server),
            Peer::Candidate(member) => format!("copying to {}", member.server),
        };
        tracing::info!(
            "group {}: view {} -> {}: {} {other}{}",
            view.group,
            before.version,
            view.version,
            name(view.primary),
            if view.handover { ", by hand-over" } else { "" }
        );
        if view.primary.is_none() {
            let cluster = self.cluster();
            let last = cluster.durable().holders(view.group);
            let last: Vec<String> =
                last.map(|member| format!("server {}", member.server)).collect();
            self.console.warn(&format!(
                "group {} is LOST: no holder is left; its keys are answered LOST. Only a complete dump of {} \
                 counts at a restore",
                view.group,
                last.join(" or ")
            ));
        }
    }

    pub(super) fn tell_step(&self, server: ServerId, step: Option<u8>) {
        let Some(step) = step else {
            self.console
                .say(&format!("server {server} is back: its groups have two copies, at home"));
            return;
        };
        let what = progress::step_words(step);
        self.console.say(&format!("server {server}, step {step}: {what}"));
    }

    /// Reports the end of a restore, and removes the dumps that were sent to hosts. They are no longer needed,
    /// because every group that is not LOST has two replicas.
    pub(super) fn tell_restored(&self, restored: &Restoration) {
        let (old, new) = (restored.cluster, self.cluster().config().cluster);
        self.console.say(&format!("restored: cluster {old} continues as cluster {new}"));
        restored.finish();
        for line in &self.plan().file.servers {
            let count = restored.of(line.id).len();
            if line.host != Host::Local && count > 0 {
                let (ssh, host, id) = (self.plan().ssh.clone(), line.host.clone(), line.id);
                let turn = Rc::clone(&self.turn);
                tokio::task::spawn_local(async move {
                    let _permit = turn.acquire().await;
                    send::remove(&ssh, &host, id, count).await;
                });
            }
        }
    }

    pub(super) fn tell_down(&self, member: Member, cause: DownCause) {
        if self.failure.borrow().is_some() {
            // The failure is reported at the end, with its reason.
            return;
        }
        let id = member.server;
        let how = match cause {
            DownCause::Silent => "no heartbeat arrived in time".to_owned(),
            DownCause::LinkLost => "its connection to the coordinator ended".to_owned(),
            DownCause::Exited => match &self.exits.borrow()[index(member)] {
                Some(exit) => with_last_words(exit),
                None => "its process has ended".to_owned(),
            },
        };
        let was_started = self.cluster().started(id).is_some();
        if cause == DownCause::Exited && !was_started && self.has_told_start(id, &how) {
            return tracing::debug!("server {id} is down: {how}");
        }
        self.console.warn(&format!("server {id} is down: {how}"));
    }

    /// Returns whether the same failure to start a process was reported recently, and otherwise records it. The
    /// host may be down for hours.
    fn has_told_start(&self, id: ServerId, how: &str) -> bool {
        let now = clock::now();
        let mut told = self.told_starts.borrow_mut();
        let is_known = told
            .get(&id)
            .is_some_and(|(at, known)| known == how && now.since(*at) < START_TOLD_EVERY);
        if !is_known {
            told.insert(id, (now, how.to_owned()));
        }
        is_known
    }

    pub(super) fn tell_phase(&self, phase: StopPhase) {
        if self.failure.borrow().is_some() {
            return;
        }
        self.say(match phase {
            StopPhase::Drain => "stop, 1 of 3: no new writes, waiting for the pending ones (DRAIN)",
            StopPhase::Dump => "stop, 2 of 3: every server writes its tables to its dumps",
            StopPhase::Shutdown => "stop, 3 of 3: every server exits (SHUTDOWN)",
        });
    }

    pub(super) fn tell_spawned(&self, line: &ServerLine, pid: Option<u32>) {
        let pid = pid.map_or_else(|| "?".into(), |pid| pid.to_string());
        tracing::info!("server {} started on {}, pid {pid}", line.id, line.host);
    }
}
