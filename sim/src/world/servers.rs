//! Server processes: their wake-ups, nodes, heartbeats and exits.

use crate::world::SEAL;
use kv_protocol::client_message::Status;
use kv_protocol::control_message::read_cluster_map;
use kv_protocol::ids::ClientId;

use super::*;
use crate::invariants::{groups, views};
use crate::server::SentResponse;

impl World {
    /// Adds an input to a shard's inbox, and wakes the shard within 20 µs.
    pub(super) fn give(&mut self, process: usize, shard: usize, input: Input) {
        self.processes[process].shards[shard].inbox.push_back(input);
        let delay = self.random.between(1_000, 20_000);
        self.wake_shard_at(process, shard, self.now + delay);
    }

    pub(super) fn wake_shard_at(&mut self, process: usize, shard: usize, at: u64) {
        let at = at.max(self.now + 1_000);
        let wake_at = &mut self.processes[process].shards[shard].wake_at;
        if wake_at.is_none_or(|known| at < known) {
            *wake_at = Some(at);
            self.at(at, Happening::WakeShard(process, shard));
        }
    }

    pub(super) fn on_wake_shard(&mut self, process: usize, shard: usize) {
        let place = &mut self.processes[process];
        if place.shards[shard].wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        place.shards[shard].wake_at = None;
        let stopped_until = place.shards[shard].stopped_until.max(place.shards[shard].busy_until);
        if stopped_until > self.now {
            return self.wake_shard_at(process, shard, stopped_until);
        }
        let reading = self.clocks[place.place].read(self.now);
        let (reading, inputs) = match place.shards[shard].stalled.take() {
            Some(stalled) => stalled,
            None => (reading, std::mem::take(&mut place.shards[shard].inbox)),
        };
        // The process is paused after it has read the clock and before it serves the inputs.
        if let Some(pause) = place.stall_next.take_if(|_| !inputs.is_empty()) {
            let at = place.place;
            place.shards[shard].stalled = Some((reading, inputs));
            self.pause(process, pause);
            crate::nemesis::on_stalled(self, at);
            return self.wake_shard_at(process, shard, self.now + pause);
        }
        place.shards[shard].read_at = self.clocks[place.place].true_time(reading);
        let clock = self.clocks[place.place];
        let read_at = place.shards[shard].read_at;
        let wall = self.walls[place.place].read(read_at);
        let (outputs, work) = place.shards[shard].wake(self.now, clock, (reading, wall), inputs);
        // After its reading, the wall clock advances with the clock of the host, which drifts.
        let since = self.now - read_at.min(self.now) + work;
        self.wall_slack = self.wall_slack.max(WallClock::error_after(since));
        place.shards[shard].busy_until = self.now + work;
        let next = place.shards[shard].next_wake(self.now, |reading| clock.true_time(reading));
        self.wake_shard_at(process, shard, next);
        self.take_outputs(process, shard, outputs);
        self.note_roles(process, shard);
        self.check(|checks, world| checks.after_wake(world, process, shard));
    }

    /// Handles a replica's response: checks it, and attributes it to the write that it settles.
    fn on_answered(&mut self, process: usize, shard: usize, responded: &SentResponse) {
        self.counts.acked += u64::from(responded.is_acked());
        let cluster = self.processes[process].cluster;
        let read_at = self.processes[process].shards[shard].read_at;
        let lost = groups::lost_is_not_served(self, cluster, read_at, responded);
        if let Err(violation) = lost {
            self.violation.get_or_insert(violation);
        }
        let Actor::Client { client } = self.network.get(responded.to).ends[0] else { return };
        let flight = self.clients[client].flights.get(&responded.request.0);
        // Only responses to writes report copies. An operation that has ended may get another response, to a
        // delayed request or to its RESOLVE.
        let is_shared = self.checks.shared.contains(&self.clients[client].id);
        let is_write = match flight {
            Some(flight) => flight.is_write(),
            None => responded.copies > 0 && !is_shared,
        };
        let is_final = matches!(
            responded.status,
            Status::Ok
                | Status::NotFound
                | Status::Conflict
                | Status::NotDone
                | Status::NotANumber
                | Status::Overflow
        );
        let mut responded = *responded;
        responded.changes = flight.map_or(responded.changes, Flight::changes_surely);
        let responded = &responded;
        if is_write && is_final {
            let name = flight.map_or(ClientId(0), |flight| flight.name());
            let asked_at = flight.map_or(0, |flight| flight.start);
            let id = self.clients[client].id;
            self.check(|checks, world| {
                checks.on_write_answered(world, process, shard, (id, name), asked_at, responded)
            });
        }
    }

    /// Records changes of the roles of replicas after a wake-up.
    fn note_roles(&mut self, process: usize, shard: usize) {
        for (group, state, version) in self.processes[process].shards[shard].new_roles() {
            let place = &self.processes[process];
            let last = place.replica(group, shard).map(|replica| replica.inspect().last);
            let last = last.unwrap_or_default();
            let member = place.member;
            let words = format_args!(
                "{member}, shard {shard} of group {group}: {state:?} in view {version}, write {last}"
            );
            self.trace.note(self.now, About::Group(group), words);
        }
    }

    pub(super) fn take_outputs(&mut self, process: usize, shard: usize, outputs: Vec<Output>) {
        let actor = Actor::Shard { process, shard };
        for output in outputs {
            match output {
                Output::Send(number, bytes, after) => {
                    let end = self.network.get(number).end_of(actor);
                    self.send_after(number, end, bytes, after);
                }
                Output::Close(number) => {
                    let end = self.network.get(number).end_of(actor);
                    self.close(number, end);
                }
                Output::ShutDown(number) => {
                    let end = self.network.get(number).end_of(actor);
                    self.shut_down(number, end);
                }
                Output::HandOver(number, wanted, mut inputs) => {
                    self.counts.handed_over += 1;
                    // The inputs that arrived while this wake-up was stalled follow.
                    let inbox = &mut self.processes[process].shards[shard].inbox;
                    let (its, others): (VecDeque<Input>, VecDeque<Input>) = std::mem::take(inbox)
                        .into_iter()
                        .partition(|input| input.connection() == Some(number));
                    *inbox = others;
                    inputs.extend(its);
                    let shard = usize::from(wanted.0);
                    self.network.give_end(number, 1, Actor::Shard { process, shard });
                    for input in inputs {
                        self.give(process, shard, input);
                    }
                }
                Output::Dial(target, address) => {
                    self.dial(actor, Target::Process(address), Purpose::Shard(target));
                }
                Output::Refused(order, reason) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_refused(order, shard, &reason, sink));
                }
                Output::Probed(order) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_probed(order, shard, sink));
                }
                Output::Published(reports) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_shard(shard, reports, sink));
                }
                Output::SentResponse(responded) => {
                    self.on_answered(process, shard, &responded);
                }
                Output::Dumped(number, part) => self.on_dumped(process, number, part),
                Output::Broken(violation) => {
                    self.violation.get_or_insert(violation);
                }
            }
        }
    }

    /// Applies an input to the process's node, and executes its effects.
    pub(super) fn node(
        &mut self,
        process: usize,
        give: impl FnOnce(&mut kv_core::node::Node, &mut Vec<NodeEffect>),
    ) {
        let mut effects = VecDeque::new();
        let mut sink = Vec::new();
        give(&mut self.processes[process].node, &mut sink);
        effects.extend(sink);
        while let Some(effect) = effects.pop_front() {
            match effect {
                NodeEffect::Install { order, view, other } => {
                    self.tell_shards(process, || Input::Install(order, view, other));
                }
                NodeEffect::Probe { order } => self.tell_shards(process, || Input::Probe(order)),
                NodeEffect::Exited { member } => {
                    self.tell_shards(process, || Input::Exited(member));
                }
                NodeEffect::Drain { order } => {
                    self.tell_shards(process, || Input::Drain);
                    let now = self.now;
                    self.after(100_000, Happening::LookAtDrain(process, order, now));
                }
                NodeEffect::Flush { order, group, view } => {
                    self.tell_shards(process, || Input::Flush(order, group, view));
                }
                NodeEffect::Dump { order, role } => self.begin_dump(process, role, Some(order)),
                NodeEffect::Shutdown { .. } => {
                    self.processes[process].left = true;
                    self.kill(process);
                }
                NodeEffect::Report(report) => self.send_report(process, &report),
            }
        }
    }

    pub(super) fn tell_shards(&mut self, process: usize, input: impl Fn() -> Input) {
        for shard in 0..self.processes[process].shards.len() {
            self.give(process, shard, input());
        }
    }

    pub(super) fn send_report(&mut self, process: usize, report: &Report) {
        let mut bytes = Vec::new();
        report.write(&mut bytes);
        let actor = Actor::Node { process };
        // Reports go to every coordinator with an open order connection.
        let open =
            self.network.live(|connection| connection.ends[1] == actor && connection.open[1]);
        for number in open {
            self.send(number, 1, bytes.clone());
        }
    }

    pub(super) fn on_node_bytes(
        &mut self,
        process: usize,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) {
        for (opcode, body) in self.frames(number, end, bytes) {
            match opcode {
                opcode::ADMITTED => {
                    if let Some((link, admitted)) = &mut self.processes[process].link
                        && *link == number
                    {
                        *admitted = true;
                        // The request may have been lost with the previous link.
                        if self.operator.told(process) {
                            self.ask_to_leave(process);
                        }
                    }
                }
                opcode::REFUSED if end == 0 => {
                    let Ok(Admission::Refused { reason }) = Admission::read(opcode, &body) else {
                        return;
                    };
                    self.close(number, 0);
                    self.processes[process].link = None;
                    self.processes[process].link_tries += 1;
                    // A rejected process exits if the coordinator has not started it, or counts it as exited.
                    if reason.contains("not started") || reason.contains("exited") {
                        return self.kill(process);
                    }
                }
                opcode::CLUSTER_MAP => self.take_map(process, opcode, &body),
                opcode::ORDERS_HELLO => {
                    let hello = OrdersHello::read(&body, &SEAL).expect("it is well formed");
                    let before = self.processes[process].node.epoch();
                    match self.processes[process].node.on_orders_hello(&hello) {
                        Ok(()) => {
                            let after = self.processes[process].node.epoch();
                            self.check(|_, _| views::epochs_grow(before, after));
                            let mut bytes = Vec::new();
                            write_orders_welcome(&mut bytes);
                            self.send(number, 1, bytes);
                        }
                        Err(_) => return self.close(number, 1),
                    }
                }
                _ => {
                    if let Ok(order) = Order::read(opcode, &body) {
                        self.processes[process].last_order = self.now;
                        self.node(process, |node, sink| node.on_order(order, sink));
                        if !self.processes[process].alive {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Passes a map to the shards, if it is one that a server keeps.
    fn take_map(&mut self, process: usize, opcode: u8, body: &[u8]) {
        let map = read_cluster_map(opcode, body).expect("it is well formed");
        let place = &mut self.processes[process];
        let is_of_epoch = map.cluster == place.cluster && map.epoch == place.node.epoch();
        let is_newer = place.map.as_ref().is_none_or(|known| map.is_newer_than(known));
        if is_of_epoch && is_newer {
            let map = Arc::new(map);
            place.map = Some(Arc::clone(&map));
            self.tell_shards(process, || Input::Map(Arc::clone(&map)));
        }
    }

    pub(super) fn on_beat(&mut self, process: usize) {
        self.after(BEAT, Happening::Beat(process));
        self.look_for_coordinator(process);
        if !self.processes[process].alive {
            return;
        }
        match self.processes[process].link {
            None => {
                let tries = self.processes[process].link_tries;
                self.dial(Actor::Node { process }, Target::Coordinator, Purpose::Link(tries));
            }
            Some((number, true)) => {
                let now = self.now;
                let replicas = self.processes[process].reports(now);
                let node = &self.processes[process].node;
                let heartbeat = Heartbeat {
                    incarnation: self.processes[process].member.incarnation,
                    epoch: node.epoch(),
                    resident_bytes: 0,
                    memory_limit: 0,
                    connection_bytes: 0,
                    connection_limit: 0,
                    clients: 0,
                    requests: 0,
                    refused: 0,
                    out_of_space: 0,
                    evicted: 0,
                    expired: 0,
                    stood_ms: 0,
                    dumped: DumpedBytes::default(),
                    crowd: None,
                    replicas,
                };
                let mut bytes = Vec::new();
                ServerMessage::Heartbeat(heartbeat).write(&mut bytes);
                self.send(number, 0, bytes);
            }
            Some((_, false)) => {}
        }
    }

    pub(super) fn on_spawned(&mut self, member: Member) {
        let place = usize::from(member.server.0);
        let before = self.running_at(place).map(|process| self.processes[process].member);
        if before.is_some_and(|before| !self.moved.contains(&before)) {
            // The ports are in use, so the process exits at once, and the coordinator observes the exit.
            let term = self.coordinator.term;
            return self.after(1_000_000, Happening::Proof(term, member));
        }
        if let Some(before) = before {
            // The coordinator keeps trying to kill the old process.
            let delay = self.random.between(1_000_000, 5_000_000_000);
            self.after(delay, Happening::Killed(before, KillReason::Replaced));
        }
        let process = self.processes.len();
        let port = u16::try_from(1_000 + process).expect("processes are few");
        let host = u8::try_from(place + 1).expect("hosts are few");
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), port));
        let placement = self.config.placement();
        let seed = self.random.any();
        let cluster = self.cluster();
        let bounds = self.config.bounds;
        self.processes.push(Process::new(cluster, member, address, placement, bounds, seed));
        self.load(process);
        self.note_place(place, format_args!("{member} starts as process {process}"));
        crate::nemesis::on_spawned(self, place);
        self.signal_newcomer(process);
        self.after(1_000, Happening::Beat(process));
        for shard in 0..usize::from(self.config.shards) {
            self.wake_shard_at(process, shard, self.now + 1_000);
        }
    }

    /// Ends a process, for any reason.
    pub fn kill(&mut self, process: usize) {
        if !self.processes[process].alive {
            return;
        }
        let member = self.processes[process].member;
        let place = self.processes[process].place;
        self.note_place(place, format_args!("{member} (process {process}) ends"));
        self.processes[process].alive = false;
        self.cut_dumps(process);
        self.backlogs.remove(&process);
        let is_its = |actor: Actor| match actor {
            Actor::Shard { process: its, .. } | Actor::Node { process: its } => its == process,
            _ => false,
        };
        for number in self.network.live(|c| is_its(c.ends[0]) || is_its(c.ends[1])) {
            for end in 0..2 {
                if is_its(self.network.get(number).ends[end]) {
                    self.close(number, end);
                }
            }
        }
        let (term, delay) = (self.coordinator.term, self.random.between(100_000, 5_000_000));
        self.after(delay, Happening::Proof(term, member));
    }

    /// Pauses a process.
    pub fn pause(&mut self, process: usize, pause: u64) {
        let until = self.now + pause;
        self.processes[process].paused_until = until;
        self.at(until, Happening::Resume(Some(process)));
    }

    /// Makes the process unreachable until this time: it cannot be killed, and its exit cannot be observed.
    pub fn keep_alive_until(&mut self, process: usize, until: u64) {
        self.processes[process].out_of_reach_until = until;
    }

    pub(super) fn on_resume(&mut self, process: Option<usize>) {
        let waiting = match process {
            Some(process) if self.now < self.processes[process].paused_until => return,
            Some(process) => self.backlogs.remove(&process).unwrap_or_default(),
            None if self.now < self.coordinator.paused_until => return,
            None => std::mem::take(&mut self.coordinator_backlog),
        };
        for happening in waiting {
            self.dispatch(happening);
        }
    }
}
