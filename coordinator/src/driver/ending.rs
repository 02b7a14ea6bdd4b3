//! The end of a stop: the last state, the exit status, and the operator's next step.

use super::*;

impl Driver {
    /// Records that the cluster has ended well, so that another cluster may follow it. If that fails, the next
    /// start only requires a confirmation. If the dumps went to another directory, stores the state there too, for
    /// a restore.
    pub(super) fn note_end(&self, state: DurableState, has_ended_well: bool) {
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
            // Servers that left before the stop have dumped here.
            true if has_resting => format!("dumps and the last state are in {own} and {there}: coord --restore {own} {there}"),
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
    pub(super) fn conclude(&self, outcome: &StopOutcome) -> Result<(), Failure> {
        if let Some((server, reason)) = &*self.failure.borrow() {
            return Err(Failure::Failed(self.start_failure(*server, reason, outcome)));
        }
        let name =
            |ids: &[ServerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !outcome.undrained.is_empty() {
            self.warn(&format!(
                "not every pending write was committed in time at: server {} (the others were not \
                 acknowledged)",
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
                "because server {second} failed before server {first} was back; the dumps of the remaining \
                 servers are in their directories"
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

    /// Returns how to restore the cluster, with commands to be pasted into a shell.
    pub(super) fn restore_advice(&self, outcome: &StopOutcome) -> String {
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

    pub(super) fn start_failure(
        &self,
        server: ServerId,
        reason: &str,
        outcome: &StopOutcome,
    ) -> String {
        let n = usize::from(server.0);
        let mut text = format!("server {server} on {}: {}", self.hosts()[n], printable(reason));
        if let Some(exit) = &self.exits.borrow()[n] {
            text += &format!(": {}", with_last_words(exit));
        }
        text += &format!("\n  command: {}", self.commands.borrow()[n]);
        text += match outcome.unproven.is_empty() {
            true => "\n  every other server was stopped again",
            false => "\n  some of the other servers may still run; see the log",
        };
        text
    }
}
