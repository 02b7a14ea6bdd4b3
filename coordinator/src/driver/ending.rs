//! The stop of the cluster: its beginning, its last state, the exit status, and advice for the next step.

use std::path::Path;
use std::rc::Rc;

use kv_core::cluster::{DurableState, StopOutcome};
use kv_protocol::ServerId;
use kv_protocol::cluster_file::Host;

use super::context::Driver;
use crate::failure::Failure;
use crate::printable::printable;
use crate::restore::written;
use crate::store::{self, Record};
use crate::{clock, quote, stop, stop_port};

impl Driver {
    /// Carries out a request of `coord stop`.
    pub(super) fn stop_as_asked(
        self: &Rc<Driver>,
        request: &stop_port::Request,
        stopping: &mut stop::Stopping,
    ) {
        if let Some(directory) = &request.dump_dir {
            self.say(&format!("coord stop: dumps go to {} from now on", printable(directory)));
            *self.dump_dir.borrow_mut() = Some(directory.clone());
            self.input(|cluster, now, sink| cluster.store_again(now, sink));
        }
        if !stopping.has_begun() {
            stopping.begin(clock::now());
            self.say("coord stop: stopping the cluster");
            self.input(|cluster, now, sink| cluster.on_stop(now, sink));
        }
        if request.dump_dir.is_some() {
            self.input(|cluster, now, sink| cluster.on_dump_again(now, sink));
        }
        if request.force {
            self.warn("coord stop --force: abandoning the tables that cannot be dumped");
            self.input(|cluster, now, sink| cluster.on_force(now, sink));
        }
    }

    /// Carries out a signal or the end of standard input.
    pub(super) fn stop_as_signaled(
        self: &Rc<Driver>,
        reason: stop::Reason,
        stopping: &mut stop::Stopping,
        only_stops: bool,
    ) {
        match stopping.wish(reason, clock::now()) {
            stop::Wish::Stop => {
                self.console.say(&format!("{reason}: stopping the cluster"));
                self.input(|cluster, now, sink| cluster.on_stop(now, sink));
            }
            stop::Wish::DoNotWait if only_stops => self.say(&format!(
                "{reason}: the stop continues; coord stop --force abandons the tables that cannot be dumped"
            )),
            stop::Wish::DoNotWait => {
                self.warn(&format!("{reason}: not waiting any longer"));
                self.input(|cluster, now, sink| cluster.on_stop_now(now, sink));
            }
            stop::Wish::GoOn => tracing::info!("{reason} too: the stop continues"),
        }
    }

    /// Searches for dumps that no server has reported, reports the outcome of the stop, and stores the last state if
    /// the cluster has served.
    pub(super) async fn end_stopped(&self, mut outcome: StopOutcome) -> Result<(), Failure> {
        let state = self.cluster().durable().clone();
        let dump_dir = self.dump_dir();
        let dirs = [Some(&*self.dir), dump_dir.as_deref().map(Path::new)];
        let dirs: Vec<&Path> = dirs.into_iter().flatten().collect();
        outcome.undumped = written::not_in_any(&dirs, &state, &outcome.undumped).await;
        let concluded = self.conclude(&outcome);
        if state.has_served {
            self.note_end(state, concluded.is_ok());
        }
        concluded
    }

    /// Records that the cluster has ended well, so that a new cluster may follow it in this directory. If the record
    /// cannot be stored, the next start is rejected until the operator restores the cluster or moves the state away. If
    /// the dumps went to another directory, also stores the state there, for a restore.
    fn note_end(&self, state: DurableState, has_ended_well: bool) {
        let record = Record { has_ended_well, ..self.record(state) };
        if has_ended_well && let Err(error) = self.state_file.store(&record) {
            self.warn(&format!("cannot store the state: {error}"));
        }
        let Some(directory) = self.dump_dir() else { return };
        let has_resting = record.state.views.iter().any(|view| record.state.rests(view.group));
        let path = Path::new(&directory);
        let is_free = match store::load(path) {
            Ok(other) => other.is_none_or(|other| other.state.cluster == record.state.cluster),
            Err(_) => false,
        };
        let stored = path.is_dir() && is_free && store::store(path, &record).is_ok();
        let own = quote::word(&self.dir.to_string_lossy());
        let there = quote::word(&directory);
        self.say(&match stored {
            // Servers that left before the stop have dumped into their own directories.
            true if has_resting => format!(
                "dumps and the last state are in {own} and {there}: coord --restore {own} {there}"
            ),
            true => format!("dumps and the last state are in {there}: coord --restore {there}"),
            false => format!(
                "the dumps are in {there} on each server's host, the last state is in {own}: gather the dumps, \
                 then coord --restore {own} {there}"
            ),
        });
    }

    /// Records the failure of a start. Later failures are consequences of the first and are ignored.
    pub(super) fn fail(&self, server: ServerId, reason: String) {
        self.failure.borrow_mut().get_or_insert((server, reason));
    }

    /// Reports the outcome of the stop, and returns it for the exit status.
    fn conclude(&self, outcome: &StopOutcome) -> Result<(), Failure> {
        if let Some((server, reason)) = &*self.failure.borrow() {
            return Err(Failure::Failed(self.start_failure(*server, reason, outcome)));
        }
        let name =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !outcome.undrained.is_empty() {
            self.warn(&format!(
                "some pending writes were not committed in time, and were not acknowledged, at server {}",
                name(&outcome.undrained)
            ));
        }
        if !outcome.killed.is_empty() {
            let names = name(&outcome.killed);
            self.warn(&format!("killed because it did not exit in time: server {names}"));
        }
        let mut lost = Vec::new();
        if let Some((first, second)) = outcome.double_fault {
            lost.push(format!(
                "because server {second} failed before server {first} was replaced; the dumps of the \
                 remaining servers are in their directories"
            ));
        }
        let mut advice = String::new();
        if outcome.double_fault.is_some() {
            advice = self.restore_advice(outcome);
        }
        if !outcome.unproven.is_empty() {
            lost.push(format!("these servers may still run: {}", name(&outcome.unproven)));
        }
        if !outcome.undumped.is_empty() {
            let groups: Vec<ServerId> = outcome.undumped.iter().map(|g| ServerId(g.0)).collect();
            lost.push(format!("no server reported a complete dump of group {}", name(&groups)));
        }
        if lost.is_empty() {
            self.console.say("stopped");
            return Ok(());
        }
        Err(Failure::Failed(format!("stopped, but {}{advice}", lost.join("; "))))
    }

    /// Returns instructions for restoring the cluster, with commands to be pasted into a shell.
    fn restore_advice(&self, outcome: &StopOutcome) -> String {
        let mut text = String::new();
        let dir = self.plan().dir.to_string_lossy().into_owned();
        for line in self.plan().file.servers.iter().filter(|line| line.host != Host::Local) {
            let (id, host, there) = (line.id, &line.host, &self.plan().ssh.remote_dir);
            text += &format!(
                "\n  to copy here first, from {host}: the files server_{id}.primary and server_{id}.secondary \
                 in {there}"
            );
        }
        if self.plan().file.servers.iter().any(|line| line.host != Host::Local) {
            text += &format!("\n  fetch them with: coord collect --dir {}", quote::word(&dir));
        }
        text += &format!("\n  restore it with: {}", self.restore_command);
        if !outcome.undumped.is_empty() {
            text +=
                "\n  add --accept-loss to continue without the groups that no server has dumped";
        }
        text
    }

    fn start_failure(&self, server: ServerId, reason: &str, outcome: &StopOutcome) -> String {
        let host = self.places.line(server).host;
        let mut text = format!("server {server} on {host}: {}", printable(reason));
        if let Some(exit) = self.processes.exit(server) {
            text += &format!(": {}", exit.with_last_words());
        }
        text += &format!("\n  command: {}", self.processes.command(server));
        text += match outcome.unproven.is_empty() {
            true => "\n  the start was canceled, and every other server was stopped",
            false => "\n  some of the other servers may still run; see the log",
        };
        text
    }
}
