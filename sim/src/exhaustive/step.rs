//! What an action does to a state: the drivers of all machines, one step at a time.

use std::collections::VecDeque;

use kv_protocol::ids::{Member, OrderId, ShardId};
use kv_protocol::view::View;

use super::brain::{BrainDone, BrainInput};
use super::client::is_definite;
use super::machine::Step;
use super::node::{NodeDone, NodeInput};
use super::properties;
use super::replica::{Asked, Done, FrameId, Given, Input, ViewKey, What, reading};
use super::scope::Scope;
use super::world::{Action, CLOSED, Connection, End, Machines, Paper, Process, Told, World};
use crate::invariants::{Violation, nothing_old, versions_grow};

/// A read's number is this and its key's.
const READ_ID: u64 = 100;

/// Which broken promises count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// All of them, also those that only the machines' insides show.
    #[default]
    Everything,
    /// Only what clients can see: a wrong value, a lost write, a write done twice, a group given up.
    ByClients,
}

/// Makes states of states.
pub struct Explorer {
    /// All machines.
    pub machines: Machines,
    /// Where and within which bounds.
    pub scope: Scope,
    /// What counts as broken.
    pub judged: Judged,
    /// What happens, in words, if anybody wants to know.
    pub words: Option<Vec<String>>,
    /// While a beginning is reached with a rule left out, nothing is judged: what is broken there is
    /// broken again later, by a step of the search, or does not matter to it.
    pub(super) is_unjudged: bool,
    broken: Option<Violation>,
}

impl Explorer {
    /// One that knows nothing yet.
    pub fn new(scope: Scope, judged: Judged) -> Explorer {
        let machines = Machines::default();
        Explorer { machines, scope, judged, words: None, is_unjudged: false, broken: None }
    }

    /// The state after an action.
    ///
    /// # Errors
    /// The promise that it breaks.
    pub fn step(&mut self, world: &World, action: Action) -> Result<World, Violation> {
        self.broken = None;
        let mut next = world.clone();
        self.act(&mut next, action);
        sweep(&mut next);
        if self.broken.is_none() {
            properties::check(self, &mut next);
        }
        match self.broken.take() {
            Some(violation) => Err(violation),
            None => Ok(next),
        }
    }

    /// The promise that a state breaks by itself.
    ///
    /// # Errors
    /// That promise.
    pub(super) fn judge(&mut self, world: &mut World) -> Result<(), Violation> {
        properties::check(self, world);
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Notes a broken promise, if it counts.
    pub fn note(&mut self, result: Result<(), Violation>) {
        let Err(violation) = result else { return };
        let counts = match self.judged {
            Judged::Everything => true,
            Judged::ByClients => matches!(violation.invariant, 0 | 13 | 16 | 17 | 19),
        };
        if counts && !self.is_unjudged {
            self.broken.get_or_insert(violation);
        }
    }

    pub(super) fn tell(&mut self, words: impl FnOnce() -> String) {
        if let Some(all) = &mut self.words {
            all.push(words());
        }
    }

    fn act(&mut self, world: &mut World, action: Action) {
        match action {
            Action::Order(p) => {
                let paper = world.processes[usize::from(p)].orders.pop_front();
                if let Some(paper) = paper
                    && !self.paper(world, usize::from(p), paper)
                {
                    world.processes[usize::from(p)].orders.clear();
                }
            }
            Action::LateOrder(p) => {
                let paper = world.processes[usize::from(p)].late.pop_front();
                if let Some(paper) = paper
                    && !self.paper(world, usize::from(p), paper)
                {
                    world.processes[usize::from(p)].late.clear();
                }
            }
            Action::Report(p) | Action::ReportTwice(p) => {
                let process = &mut world.processes[usize::from(p)];
                let member = process.member;
                let Some(report) = process.reports.pop_front() else { return };
                if let Action::ReportTwice(_) = action {
                    process.reports.push_back(report);
                    world.left.late_reports -= 1;
                }
                self.brain(world, BrainInput::Report(member, report));
            }
            Action::Inbox(p, s) => {
                let inbox = &mut world.processes[usize::from(p)].inboxes[usize::from(s)];
                if let Some(told) = inbox.pop_front() {
                    self.told(world, usize::from(p), usize::from(s), told);
                }
            }
            Action::Frame(c, side) => self.frame(world, usize::from(c), usize::from(side)),
            Action::Wake(p, s) => {
                self.replica(world, usize::from(p), usize::from(s), Input::Wake, None);
            }
            Action::Tick => {
                (world.tick, world.left.ticks) = (world.tick + 1, world.left.ticks - 1);
                let due = self.machines.brains.sight(world.brain).due;
                if due.is_some_and(|due| due <= reading(world.tick)) {
                    self.brain(world, BrainInput::Wake);
                }
            }
            Action::Kill(p) => {
                if !world.processes[usize::from(p)].is_condemned {
                    world.left.kills -= 1;
                }
                kill(world, usize::from(p));
            }
            Action::Proof(p) => {
                let process = &mut world.processes[usize::from(p)];
                process.proven = true;
                let member = process.member;
                self.brain(world, BrainInput::Exited(member));
            }
            Action::Suspect(p) => {
                let process = &mut world.processes[usize::from(p)];
                if process.alive {
                    world.left.suspicions -= 1;
                }
                process.link.1 = false;
                let (link, server) = (process.link.0, process.member.server);
                self.brain(world, BrainInput::LinkLost(link, server));
            }
            Action::Heartbeat(p) | Action::Ghost(p) => {
                match action {
                    Action::Ghost(_) => world.left.ghosts -= 1,
                    _ => world.left.votes -= 1,
                }
                let input = self.heartbeat(world, usize::from(p));
                self.brain(world, input);
            }
            Action::Back(p) => {
                world.left.returns -= 1;
                self.connect(world, usize::from(p));
            }
            Action::Break(c) => {
                world.left.breaks -= 1;
                let connection = &mut world.connections[usize::from(c)];
                for side in 0..2 {
                    connection.to[side].clear();
                    if connection.ends[side].1 != End::Gone {
                        connection.to[side].push_back(CLOSED);
                    }
                }
            }
            Action::Ask(n, p) => self.ask_write(world, n, usize::from(p)),
            Action::Read(key, p) => {
                world.left.reads -= 1;
                self.read(world, key, usize::from(p));
            }
            Action::Spawned => {
                world.left.spawns -= 1;
                let member = world.spawning.remove(0);
                let process = Process::new(&mut self.machines, &self.scope, member);
                world.processes.push(process);
                self.connect(world, world.processes.len() - 1);
            }
            Action::Stored => {
                if let Some(number) = world.storing.take() {
                    self.brain(world, BrainInput::Stored(number));
                }
            }
            Action::Restart => self.restart(world),
        }
    }

    /// A process connects to the coordinator and says who it is.
    fn connect(&mut self, world: &mut World, p: usize) {
        world.links += 1;
        let process = &mut world.processes[p];
        process.link = (world.links, true);
        let input = BrainInput::Started(process.member, world.links);
        self.brain(world, input);
    }

    fn restart(&mut self, world: &mut World) {
        world.left.restarts -= 1;
        (world.storing, world.spawning) = (None, Vec::new());
        let before = self.machines.brains.sight(world.brain).epoch;
        for process in &mut world.processes {
            (process.link.1, process.proven, process.is_condemned) = (false, false, false);
            process.reports.clear();
            // What the dead one had sent, and perhaps a hello of its own, comes whenever it likes.
            if process.alive {
                process.late = std::mem::take(&mut process.orders);
                process.late.push_front(Paper::Hello(before));
            }
        }
        self.brain(world, BrainInput::Restart);
    }

    fn heartbeat(&mut self, world: &World, p: usize) -> BrainInput {
        let process = &world.processes[p];
        let now = reading(world.tick);
        let line = |state: &u32| {
            let sight = self.machines.replicas.sight(*state);
            let mut report = sight.report?;
            let silent = now.since(sight.heard?).as_millis();
            report.silent_ms = u32::try_from(silent).unwrap_or(u32::MAX);
            Some(report)
        };
        let reports = process.shards.iter().filter_map(line).collect();
        BrainInput::Heartbeat(process.link.0, process.member, reports)
    }

    /// Gives the brain an input, and all that follows from it at once.
    pub(super) fn brain(&mut self, world: &mut World, input: BrainInput) {
        let mut todo = VecDeque::from([input]);
        while let Some(input) = todo.pop_front() {
            let key = (world.tick, input.clone());
            let Machines { brains, papers, .. } = &mut self.machines;
            let step = match brains.take(papers, world.brain, key) {
                Ok(step) => step,
                Err(words) => return self.panicked("the coordinator", &words),
            };
            let Step { next, output } = &*step;
            world.brain = *next;
            for done in output {
                self.brain_done(world, &input, done, &mut todo);
            }
        }
    }

    fn brain_done(
        &mut self,
        world: &mut World,
        input: &BrainInput,
        done: &BrainDone,
        todo: &mut VecDeque<BrainInput>,
    ) {
        match done {
            BrainDone::Store(number) if self.scope.slow_disk => world.storing = Some(*number),
            BrainDone::Store(number) => todo.push_back(BrainInput::Stored(*number)),
            BrainDone::Spawn(member) => world.spawning.push(*member),
            BrainDone::Dial(member) => {
                if let Some(p) = running(world, *member) {
                    let epoch = self.machines.brains.sight(world.brain).epoch;
                    world.processes[p].orders.push_back(Paper::Hello(epoch));
                    todo.push_back(BrainInput::OrdersConnected(*member));
                }
            }
            BrainDone::Adopt(_) => {}
            BrainDone::Order(to, order) => {
                if let Some(p) = running(world, *to) {
                    world.processes[p].orders.push_back(Paper::Order(*order));
                }
            }
            BrainDone::StubOrder(to, order) => {
                if running(world, *to).is_some() {
                    todo.push_back(BrainInput::ByTheStub(*to, *order));
                }
            }
            BrainDone::Kill(member, named) => {
                if *named {
                    let words = format!("{member} is killed though a durable view names it");
                    self.note(Err(Violation::new(20, words)));
                }
                if let Some(p) = running(world, *member) {
                    world.processes[p].is_condemned = true;
                }
            }
            BrainDone::View(before, view) => {
                self.tell(|| format!("durable: {}", super::trace::view_words(view)));
                properties::on_view(self, world, before, view);
            }
            BrainDone::Heard(whose) => {
                if let BrainInput::Heartbeat(_, speaker, _) = input {
                    self.note(nothing_old::heartbeat(speaker.incarnation, *whose));
                }
            }
        }
    }

    /// A node takes what came over a connection for orders; `false` ends the connection.
    fn paper(&mut self, world: &mut World, p: usize, paper: Paper) -> bool {
        match paper {
            Paper::Order(order) => {
                self.node(world, p, NodeInput::Order(order));
                true
            }
            Paper::Hello(epoch) => {
                let before = *self.machines.nodes.sight(world.processes[p].node).as_ref();
                self.node(world, p, NodeInput::Hello(epoch));
                let after = *self.machines.nodes.sight(world.processes[p].node).as_ref();
                self.note(versions_grow::epochs(before, after));
                after == epoch
            }
        }
    }

    fn node(&mut self, world: &mut World, p: usize, input: NodeInput) {
        let Machines { nodes, papers, .. } = &mut self.machines;
        let step = match nodes.take(papers, world.processes[p].node, input) {
            Ok(step) => step,
            Err(words) => return self.panicked("a node", &words),
        };
        world.processes[p].node = step.next;
        for done in &step.output {
            match done {
                NodeDone::Install(order, view) => {
                    self.tell_shards(world, p, |me| Told::Install(me.order_of(*order, *view)));
                }
                NodeDone::Exited(member) => {
                    self.tell_shards(world, p, |_| Told::Exited(*member));
                }
                NodeDone::Probe(order) => {
                    for shard in 0..self.scope.shards {
                        self.node(world, p, NodeInput::Probed(*order, ShardId(shard)));
                    }
                }
                NodeDone::Report(report) => world.processes[p].reports.push_back(*report),
                NodeDone::HelloRefused | NodeDone::Obeyed(_) => {}
            }
        }
    }

    /// With one shard the node and its executor take the step together.
    fn tell_shards(&mut self, world: &mut World, p: usize, told: impl Fn(&mut Explorer) -> Told) {
        let told = told(self);
        match self.scope.shards {
            1 => self.told(world, p, 0, told),
            _ => world.processes[p].inboxes.iter_mut().for_each(|inbox| inbox.push_back(told)),
        }
    }

    fn order_of(&mut self, id: OrderId, view: View) -> u32 {
        self.machines.installs.number_printed((id, view))
    }

    fn told(&mut self, world: &mut World, p: usize, s: usize, told: Told) {
        match told {
            Told::Exited(member) => self.replica(world, p, s, Input::Exited(member), None),
            Told::Install(number) => {
                let (order, view) = *self.machines.installs.get(number);
                let refused =
                    self.replica_refusing(world, p, s, Input::Install(ViewKey(view)), None);
                if let Some(words) = refused {
                    let shard = ShardId(u16::try_from(s).expect("shards are few"));
                    self.tell(|| format!("refused: {words}"));
                    self.node(world, p, NodeInput::Refused(order, shard, words));
                }
            }
        }
    }

    fn frame(&mut self, world: &mut World, c: usize, side: usize) {
        let connection = &mut world.connections[c];
        let Some(frame) = connection.to[side].pop_front() else { return };
        let (p, end) = connection.ends[side];
        let (p, s) = (usize::from(p), usize::from(connection.shard));
        match (frame, end) {
            (CLOSED, _) => {
                connection.ends[side].1 = End::Gone;
                if end == End::Attached {
                    self.replica(world, p, s, Input::Closed, None);
                }
            }
            (_, End::Pending) => self.replica(world, p, s, Input::Hello(frame), Some(c)),
            (_, _) => self.replica(world, p, s, Input::Frame(frame), None),
        }
    }

    fn replica(
        &mut self,
        world: &mut World,
        p: usize,
        s: usize,
        input: Input,
        hello: Option<usize>,
    ) {
        let _ = self.replica_refusing(world, p, s, input, hello);
    }

    /// Wakes a replica with an input; the answer is why it does not install a view.
    fn replica_refusing(
        &mut self,
        world: &mut World,
        p: usize,
        s: usize,
        input: Input,
        hello: Option<usize>,
    ) -> Option<String> {
        let before = self.machines.replicas.sight(world.processes[p].shards[s]).report;
        let refused = self.wake(world, p, s, input, hello, None);
        // The driver dials what is wanted, as long as somebody is there to answer.
        for _ in 0..4 {
            let sight = self.machines.replicas.sight(world.processes[p].shards[s]).clone();
            let Some(wanted) = sight.wants else { break };
            let Some(other) = running(world, wanted.to) else { break };
            self.wake(world, p, s, Input::Dialled, None, Some(other));
        }
        let after = self.machines.replicas.sight(world.processes[p].shards[s]).report;
        if before != after {
            let shard = ShardId(u16::try_from(s).expect("shards are few"));
            self.node(world, p, NodeInput::Shard(shard, after));
        }
        refused
    }

    fn wake(
        &mut self,
        world: &mut World,
        p: usize,
        s: usize,
        input: Input,
        hello: Option<usize>,
        dialled: Option<usize>,
    ) -> Option<String> {
        let state = world.processes[p].shards[s];
        let Machines { replicas, frames, .. } = &mut self.machines;
        let step = match replicas.take(frames, state, (world.tick, input)) {
            Ok(step) => step,
            Err(words) => {
                let who = world.processes[p].member.to_string();
                self.panicked(&who, &words);
                return None;
            }
        };
        world.processes[p].shards[s] = step.next;
        let mut refused = None;
        for done in &step.output {
            match done {
                Done::Send(frame) => send(world, p, s, *frame),
                Done::Close => close(world, p, s),
                Done::Accept => {
                    if let Some(c) = hello {
                        world.connections[c].ends[1].1 = End::Attached;
                    }
                }
                Done::Refuse(frame) => {
                    if let Some(c) = hello {
                        let connection = &mut world.connections[c];
                        connection.ends[1].1 = End::Gone;
                        connection.to[1].clear();
                        if connection.ends[0].1 != End::Gone {
                            connection.to[0].extend([*frame, CLOSED]);
                        }
                    }
                }
                Done::Connect(frame) => {
                    let small = |n: usize| u8::try_from(n).expect("processes are few");
                    let other = dialled.expect("only who dials connects");
                    world.connections.push(Connection {
                        shard: small(s),
                        ends: [(small(p), End::Attached), (small(other), End::Pending)],
                        to: [VecDeque::new(), VecDeque::from([*frame])],
                    });
                }
                Done::Answer(given) => self.answered(world, p, s, given),
                Done::NotInstalled(words) => refused = Some(words.clone()),
                Done::Broken(violation) => self.note(Err(violation.clone())),
            }
        }
        refused
    }

    fn ask_write(&mut self, world: &mut World, n: u8, p: usize) {
        if n < world.clients.asked {
            world.left.retries -= 1;
        }
        world.clients.asked = world.clients.asked.max(n + 1);
        let asked = world.clients.request(&self.scope.script, n);
        let s = usize::from(self.scope.script.shard_of(usize::from(n)));
        self.replica(world, p, s, Input::Ask(asked), None);
    }

    fn read(&mut self, world: &mut World, key: u8, p: usize) {
        let (asked, s) = self.read_of(key);
        self.replica(world, p, s, Input::Ask(asked), None);
    }

    fn read_of(&self, key: u8) -> (Asked, usize) {
        let (name, shard) = self.scope.script.keys[usize::from(key)];
        let asked = Asked { id: READ_ID + u64::from(key), key: name, what: What::Get };
        (asked, usize::from(shard))
    }

    /// What a read of a key at a process would find now, without its being asked.
    pub(super) fn probe(&mut self, world: &World, key: u8, p: usize) {
        let (asked, s) = self.read_of(key);
        let state = world.processes[p].shards[s];
        let Machines { replicas, frames, .. } = &mut self.machines;
        let Ok(step) = replicas.take(frames, state, (world.tick, Input::Ask(asked))) else {
            return;
        };
        for done in &step.output {
            match done {
                Done::Broken(violation) => self.note(Err(violation.clone())),
                Done::Answer(given) if given.id == asked.id && is_definite(given.status) => {
                    let mut clients = world.clients.clone();
                    let read = clients.on_read(&self.scope.script, key, given.writer);
                    let who = world.processes[p].member;
                    let named = |(invariant, words)| {
                        Violation::new(invariant, format!("{words} (asked of {who} now)"))
                    };
                    self.note(read.map_err(named));
                }
                _ => {}
            }
        }
    }

    fn answered(&mut self, world: &mut World, p: usize, s: usize, given: &Given) {
        let Given { id, status, copies, version, writer } = *given;
        let who = world.processes[p].member;
        self.tell(|| super::trace::answer_words(who, given));
        if !is_definite(status) {
            return;
        }
        let named = |(invariant, words)| Violation::new(invariant, words);
        if id >= READ_ID {
            let key = u8::try_from(id - READ_ID).expect("keys are few");
            let read = world.clients.on_read(&self.scope.script, key, writer);
            return self.note(read.map_err(named));
        }
        let n = u8::try_from(id - 1).expect("writes are few");
        let written = world.clients.on_written(&self.scope.script, n, status, version);
        self.note(written.map_err(named));
        if copies > 0 && status == kv_protocol::client_message::Status::Ok {
            properties::on_acked(self, world, p, s, given);
        }
    }

    fn panicked(&mut self, who: &str, words: &str) {
        let words = format!("{who} panics: {words}");
        self.broken.get_or_insert(Violation::new(0, words));
    }
}

/// The process of a member, if it runs.
pub fn running(world: &World, member: Member) -> Option<usize> {
    world.process_of(member).filter(|p| world.processes[*p].alive)
}

fn attached(world: &mut World, p: usize, s: usize) -> Option<(&mut Connection, usize)> {
    world.connections.iter_mut().find_map(|connection| {
        let is_end = |(q, end): (u8, End)| usize::from(q) == p && end == End::Attached;
        if usize::from(connection.shard) != s {
            return None;
        }
        let side = (0..2).find(|side| is_end(connection.ends[*side]))?;
        Some((connection, side))
    })
}

fn send(world: &mut World, p: usize, s: usize, frame: FrameId) {
    if let Some((connection, side)) = attached(world, p, s)
        && connection.ends[1 - side].1 != End::Gone
    {
        connection.to[1 - side].push_back(frame);
    }
}

fn close(world: &mut World, p: usize, s: usize) {
    if let Some((connection, side)) = attached(world, p, s) {
        end(connection, side);
    }
}

/// One side is closed; the other will see it, after all that was sent before.
fn end(connection: &mut Connection, side: usize) {
    connection.ends[side].1 = End::Gone;
    connection.to[side].clear();
    if connection.ends[1 - side].1 != End::Gone {
        connection.to[1 - side].push_back(CLOSED);
    }
}

fn kill(world: &mut World, p: usize) {
    let process = &mut world.processes[p];
    (process.alive, process.is_condemned) = (false, false);
    process.orders.clear();
    process.late.clear();
    process.inboxes.iter_mut().for_each(VecDeque::clear);
    for connection in &mut world.connections {
        for side in 0..2 {
            if usize::from(connection.ends[side].0) == p && connection.ends[side].1 != End::Gone {
                end(connection, side);
            }
        }
    }
}

fn sweep(world: &mut World) {
    let is_over = |connection: &Connection| connection.ends.iter().all(|end| end.1 == End::Gone);
    world.connections.retain(|connection| !is_over(connection));
}
