//! The description of a path through the states, as text.

use std::fmt::Write as _;

use crate::world::SEAL;
use kv_protocol::control_message::Order;
use kv_protocol::ids::Member;
use kv_protocol::peer_message::{
    BatchReader, PeerHello, PeerMessage, PeerRefusal, PeerWelcome, opcode,
};
use kv_protocol::view::{Peer, View};

use super::replica::{FrameId, Given, Kind, body_of};
use super::scope::Scope;
use super::step::{Explorer, Judged};
use super::world::{Action, CLOSED, Paper, Told, World};

/// Describes every step of a path.
pub fn tell(scope: &Scope, judged: Judged, way: &[Action]) -> Vec<String> {
    let mut explorer = Explorer::new(scope.clone(), judged);
    let Ok(mut world) = scope.begin(&mut explorer) else { return Vec::new() };
    let mut lines = Vec::new();
    for (number, action) in way.iter().enumerate() {
        let line = describe(&explorer, &world, *action);
        explorer.words = Some(Vec::new());
        let next = explorer.step(&world, *action);
        let words = explorer.words.take().unwrap_or_default();
        lines.push(format!("{:>3}  {line}", number + 1));
        lines.extend(words.into_iter().map(|words| format!("       {words}")));
        match next {
            Ok(next) => {
                lines.extend(changes(&explorer, &world, &next));
                world = next;
            }
            Err(violation) => {
                lines.push(format!("     = {}: {}", violation.invariant, violation.words));
                break;
            }
        }
    }
    lines
}

/// Returns a readable name of a process: its place, and the start of its incarnation.
pub fn name(member: Member) -> String {
    let place = ['A', 'B'].get(usize::from(member.server.0)).copied().unwrap_or('?');
    format!("{place}({:04x})", member.incarnation.0 >> 48)
}

fn name_in(world: &World, p: u8) -> String {
    let member = world.processes[usize::from(p)].member;
    let place = ['A', 'B'].get(usize::from(member.server.0)).copied().unwrap_or('?');
    let before = &world.processes[..usize::from(p)];
    let earlier = before.iter().filter(|process| process.member.server == member.server).count();
    format!("{place}{}", "+".repeat(earlier))
}

/// Describes a view briefly.
pub fn view_words(view: &View) -> String {
    let member = |member: Option<Member>| member.map_or("no primary".to_owned(), name);
    let handover = if view.handover { ", hand-over" } else { "" };
    let other = match view.peer {
        Peer::None => String::new(),
        Peer::Secondary(other) => format!(", {}", name(other)),
        Peer::Candidate(other) => format!(", candidate {}", name(other)),
    };
    format!("view {} {{{}{other}}}{handover}", view.version, member(view.primary))
}

/// Describes a response briefly.
pub fn response_words(who: Member, given: &Given) -> String {
    let Given { id, status, copies, version, writer } = *given;
    let what = match (id >= 100, writer) {
        (true, Some(writer)) => format!("the read returns write {writer}"),
        (true, None) => format!("the read gets {status:?}"),
        (false, _) => format!("write {id} gets {status:?}, version {version}, {copies} copies"),
    };
    format!("{}: {what}", name(who))
}

fn describe(explorer: &Explorer, world: &World, action: Action) -> String {
    let who = |p: u8| name_in(world, p);
    let script = &explorer.scope.script;
    match action {
        Action::Order(p) => {
            let paper = world.processes[usize::from(p)].orders.front();
            format!("{} receives {}", who(p), paper_words(explorer, paper))
        }
        Action::LateOrder(p) => {
            let paper = world.processes[usize::from(p)].late.front();
            format!("{} receives late: {}", who(p), paper_words(explorer, paper))
        }
        Action::Report(p) | Action::ReportTwice(p) => {
            let report = world.processes[usize::from(p)].reports.front();
            let report = report.map(|number| explorer.machines.papers.reports.get(*number));
            let words = report.map_or(String::new(), |report| {
                format!("of view {}: {:?}", report.view, report.outcome)
            });
            let twice = if let Action::ReportTwice(_) = action { " (and again later)" } else { "" };
            format!("the coordinator receives the report of {} {words}{twice}", who(p))
        }
        Action::Inbox(p, s) => {
            let told = world.processes[usize::from(p)].inboxes[usize::from(s)].front();
            let words = match told {
                Some(Told::Install(number)) => {
                    view_words(&explorer.machines.installs.get(*number).1)
                }
                Some(Told::Exited(member)) => format!("the death of {}", name(*member)),
                None => String::new(),
            };
            format!("{}, shard {s}, receives {words}", who(p))
        }
        Action::Frame(c, side) => {
            let connection = &world.connections[usize::from(c)];
            let side = usize::from(side);
            let (to, from) = (connection.ends[side].0, connection.ends[1 - side].0);
            let frame = connection.to[side].front().copied().unwrap_or(CLOSED);
            let shard = match explorer.scope.shards {
                1 => String::new(),
                _ => format!(" (shard {})", connection.shard),
            };
            format!("{} <- {}{shard}: {}", who(to), who(from), frame_words(explorer, frame))
        }
        Action::Wake(p, s) => format!("{}, shard {s}, wakes for a timer", who(p)),
        Action::Tick => format!("a tick passes: {} ms", (u32::from(world.tick) + 1) * 300),
        Action::Kill(p) => format!("{} dies", who(p)),
        Action::Proof(p) => format!("the coordinator receives the proof that {} is dead", who(p)),
        Action::Suspect(p) => format!("the coordinator loses its link to {}", who(p)),
        Action::Heartbeat(p) => format!("a heartbeat of {} arrives", who(p)),
        Action::Back(p) => format!("{} connects to the coordinator", who(p)),
        Action::Ghost(p) => format!("a heartbeat of {}, which is dead, arrives", who(p)),
        Action::Break(c) => {
            let ends = world.connections[usize::from(c)].ends;
            format!("the stream from {} to {} breaks", who(ends[0].0), who(ends[1].0))
        }
        Action::Ask(n, p) => {
            let write = script.writes[usize::from(n)];
            let key = script.keys[usize::from(write.key)].0;
            let kind = match write.kind {
                Kind::Put => "put",
                Kind::PutIfAbsent => "put if absent",
                Kind::Delete => "delete",
            };
            let again = if n < world.clients.asked { "again, " } else { "" };
            format!("client {} to {}: {again}write {}, {kind} {key}", write.client, who(p), n + 1)
        }
        Action::Read(key, p) => {
            format!("{} is read at {}", script.keys[usize::from(key)].0, who(p))
        }
        Action::Spawned => "the replacement starts and reports".to_owned(),
        Action::Stored => "the store in progress becomes durable".to_owned(),
        Action::Restart => "the coordinator dies; another one continues from its disk".to_owned(),
    }
}

fn paper_words(explorer: &Explorer, paper: Option<&Paper>) -> String {
    match paper {
        None => String::new(),
        Some(Paper::Hello(epoch)) => format!("the coordinator's hello, epoch {}", epoch.number),
        Some(Paper::Order(number)) => {
            let order: &Order = explorer.machines.papers.orders.get(*number);
            match order.view() {
                Some(view) => format!("{} {}", order.name(), view_words(view)),
                None => format!("{:?}", order.kind),
            }
        }
    }
}

fn frame_words(explorer: &Explorer, frame: FrameId) -> String {
    if frame == CLOSED {
        return "the end of the stream".to_owned();
    }
    let bytes = explorer.machines.frames.get(frame);
    let (code, body) = body_of(bytes);
    match code {
        opcode::PEER_HELLO => PeerHello::read(body, &SEAL)
            .map_or_else(|_| String::new(), |hello| format!("HELLO {}", view_words(&hello.view))),
        opcode::PEER_WELCOME => PeerWelcome::read(body).map_or_else(
            |_| String::new(),
            |welcome| format!("WELCOME after write {}", welcome.last),
        ),
        opcode::PEER_REFUSAL => PeerRefusal::read(body)
            .map_or_else(|_| String::new(), |refusal| format!("REFUSAL {:?}", refusal.reason)),
        _ => batch_words(body),
    }
}

fn batch_words(body: &[u8]) -> String {
    let Ok(reader) = BatchReader::new(body) else { return String::new() };
    let mut words = String::new();
    for message in reader.flatten() {
        let view = message.view();
        let _ = match message {
            PeerMessage::Prepare(m) => write!(words, "PREPARE {} {:?}", m.sn, m.effect),
            PeerMessage::Fragment(m) => write!(words, "FRAGMENT of {}", m.sn),
            PeerMessage::Ack(m) => write!(words, "ACK {}", m.sn),
            PeerMessage::Beacon(_) => write!(words, "BEACON"),
            PeerMessage::CopyStart(m) => write!(words, "COPY-START {}", m.sn),
            PeerMessage::CopyEntry(m) => {
                let key = String::from_utf8_lossy(m.key);
                write!(words, "COPY-ENTRY {key} of write {}", m.version)
            }
            PeerMessage::CopyFragment(_) => write!(words, "COPY-FRAGMENT"),
            PeerMessage::CopyRecord(m) => write!(words, "COPY-RECORD of write {}", m.sn),
            PeerMessage::CopyEnd(m) => write!(words, "COPY-END {}", m.sn),
            PeerMessage::Marked(m) => write!(words, "MARKED {}", m.sn),
            PeerMessage::Handover(m) => write!(words, "HANDOVER {}", m.sn),
        };
        let _ = write!(words, " (view {view}), ");
    }
    words.trim_end_matches(", ").to_owned()
}

/// Describes the replicas whose state or view version has changed.
fn changes(explorer: &Explorer, before: &World, after: &World) -> Vec<String> {
    let mut lines = Vec::new();
    for (p, process) in after.processes.iter().enumerate() {
        for (s, state) in process.shards.iter().enumerate() {
            let is = &explorer.machines.replicas.sight(*state).inside;
            let earlier = before.processes.get(p).map(|process| process.shards[s]);
            let was = earlier.map(|state| &explorer.machines.replicas.sight(state).inside);
            let role = |sight: &kv_core::replica::Inspection| {
                (sight.state, sight.view.map(|view| view.version))
            };
            if was.is_none_or(|was| role(was) != role(is)) {
                let who = name_in(after, u8::try_from(p).expect("processes are few"));
                let shard =
                    if process.shards.len() > 1 { format!(" (shard {s})") } else { String::new() };
                let view = is.view.as_ref().map_or("no view".to_owned(), view_words);
                lines.push(format!("       {who}{shard} is {:?} in {view}", is.state));
            }
        }
    }
    lines
}
