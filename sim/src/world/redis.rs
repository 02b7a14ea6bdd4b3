//! Redis clients: connections to random servers, pipelines, replies. See [`crate::redis`].

use kv_history::object::{Answer, ObjectEntry, Outcome, Shown, Span};
use kv_history::{Asked, Entry, Returned};
use kv_protocol::Eviction;
use kv_shard::Port;
use kv_testkit::objects::{Known, is_whole};
use kv_testkit::resp::Reply;

use super::*;
use crate::clock::wall_millis;
use crate::invariants::redis as replies;
use crate::invariants::{messages, redis::is_served};
use crate::object::ObjectAsk;
use crate::redis::command::{Command, Told};
use crate::redis::own::OwnKeys;
use crate::redis::{AskedOf, DEPTH_MAX, Planned, RedisClient, Sent};
use crate::server::Reader;
use crate::workload::{SlotId, value_of};

/// The probability, per mille, that a client closes its connection without waiting for replies.
const RESET_PER_MILLE: u64 = 2;
/// The probability, per mille, that a client shuts down its sending direction after a pipeline.
const HALF_CLOSE_PER_MILLE: u64 = 3;
/// The probability, per mille, that a client sends only a part of its bytes now.
const CUT_PER_MILLE: u64 = 150;
/// The time between two wake-ups of a client that begins no commands, in nanoseconds.
const WATCHES: u64 = 20_000_000;

/// The result of a command for its history.
enum End {
    /// A definite reply.
    Told(Reply),
    /// The command had no effect and will have none.
    NotDone,
    /// The command may take effect at any time.
    InDoubt,
}

impl World {
    /// Creates the Redis clients of a run.
    pub(super) fn plan_redis(&mut self) {
        let mut random = Random::new(self.config.seed ^ 0x4ed1);
        // In these runs entries disappear without a command.
        let has_own = !self.config.flushes && self.config.bounds.eviction == Eviction::None;
        for client in 0..self.config.redis {
            let depth = 1 + random.index(DEPTH_MAX);
            let own = has_own.then(|| OwnKeys::new(client, self.config.bounds.redis_multi));
            self.redis.push(RedisClient::new(client, depth, own));
            self.after(2_000_000 * client as u64, Happening::WakeRedis(client));
        }
    }

    pub(super) fn on_wake_redis(&mut self, client: usize) {
        let think = if self.is_healing { WATCHES } else { self.config.think };
        let delay = self.random.between(think / 2, think * 3 / 2);
        self.after(delay, Happening::WakeRedis(client));
        let Some(number) = self.redis[client].connection else {
            return self.connect_redis(client);
        };
        if !is_served(self, number, self.redis_host(client)) {
            self.redis[client].waits_since = self.now;
        }
        self.check(|_, world| replies::replies_in_time(world, &world.redis[client]));
        if !self.is_healing && self.random.per_mille(RESET_PER_MILLE) {
            self.counts.resets += 1;
            self.close(number, 0);
            return self.end_redis(client);
        }
        self.begin_commands(client);
        self.send_commands(client, number);
    }

    fn begin_commands(&mut self, client: usize) {
        let room = self.redis[client].depth.saturating_sub(self.redis[client].queue.len());
        if self.redis[client].is_shut || room == 0 {
            return;
        }
        for _ in 0..=self.random.index(room) {
            let state = &mut self.redis[client];
            if self.is_healing && !state.is_in_transaction() {
                return;
            }
            let planned = self.workload.plan_command(&mut self.random, self.now, state);
            state.begin(self.now, planned);
        }
    }

    /// Sends the bytes that are due, or a part of them.
    fn send_commands(&mut self, client: usize, number: ConnectionNumber) {
        let state = &mut self.redis[client];
        let length = state.unsent.len();
        if length == 0 {
            return;
        }
        let is_cut = !self.is_healing && length > 1 && self.random.per_mille(CUT_PER_MILLE);
        let count = if is_cut { 1 + self.random.index(length - 1) } else { length };
        let bytes = state.unsent.drain(..count).collect();
        let is_last = state.unsent.is_empty() && !state.is_shut && !self.is_healing;
        state.is_shut |= is_last && self.random.per_mille(HALF_CLOSE_PER_MILLE);
        let is_shut = state.is_shut && state.unsent.is_empty();
        self.send(number, 0, bytes);
        if is_shut {
            self.counts.half_closes += 1;
            self.shut_down(number, 0);
        }
    }

    /// Connects a client to a random server.
    fn connect_redis(&mut self, client: usize) {
        let cluster = self.cluster();
        let is_running = |process: &Process| process.alive && process.cluster == cluster;
        let running: Vec<usize> =
            (0..self.processes.len()).filter(|at| is_running(&self.processes[*at])).collect();
        if running.is_empty() {
            return;
        }
        let process = running[self.random.index(running.len())];
        let ends = [Actor::Redis { client }, self.any_executor(process)];
        let hosts = ends.map(|end| self.host_of(end));
        let number = self.network.connect(&mut self.random, ends, hosts);
        if let Actor::Shard { process, shard } = ends[1] {
            let port = if self.random.per_mille(500) { Port::Clients } else { Port::Redis };
            self.give(process, shard, Input::Accepted(number, port, Reader::Fast));
        }
        self.redis[client].connection = Some(number);
        self.redis[client].waits_since = self.now;
    }

    fn redis_host(&self, client: usize) -> Host {
        self.host_of(Actor::Redis { client })
    }

    pub(super) fn on_redis_bytes(&mut self, client: usize, number: ConnectionNumber, bytes: &[u8]) {
        if self.redis[client].connection != Some(number) {
            return;
        }
        self.redis[client].replies.extend(bytes);
        loop {
            let state = &mut self.redis[client];
            let reply = match state.replies.next_reply() {
                Ok(Some(reply)) => reply,
                Ok(None) => return,
                Err(error) => {
                    let words = error.to_string();
                    return self.check(|_, _| Err(replies::reply_is_malformed(number, &words)));
                }
            };
            let sent = state.sent();
            let command = state.queue.pop_front().filter(|command| command.end <= sent);
            let Some(command) = command else {
                return self.check(|_, _| Err(replies::reply_without_command(number, &reply)));
            };
            state.waits_since = self.now;
            let end = self.end_of(client, reply);
            self.note_command(client, command, end);
        }
    }

    /// Returns the end of a command with this reply.
    fn end_of(&mut self, client: usize, reply: Reply) -> End {
        let Reply::Error(text) = &reply else { return End::Told(reply) };
        if text.starts_with("ERR outcome unknown") {
            (self.redis[client].is_shut, self.redis[client].is_ending) = (true, true);
            return End::InDoubt;
        }
        match is_refusal(&reply) {
            true => End::NotDone,
            false => End::Told(reply),
        }
    }

    /// Handles the end of a connection at the side of the client.
    pub(super) fn on_redis_end(&mut self, client: usize, number: ConnectionNumber) {
        if self.redis[client].connection == Some(number) {
            self.check(|_, world| replies::end_has_a_cause(world, &world.redis[client], number));
            self.end_redis(client);
        }
    }

    /// Ends all commands of a connection that is closed.
    pub(super) fn end_redis(&mut self, client: usize) {
        for (command, is_sent) in self.redis[client].disconnect() {
            let end = if is_sent { End::InDoubt } else { End::NotDone };
            self.note_command(client, command, end);
        }
    }

    /// Records the end of a command.
    fn note_command(&mut self, client: usize, command: Sent, end: End) {
        match end {
            End::Told(_) => {
                self.counts.commands += 1;
                self.counts.operations += 1;
            }
            End::NotDone => self.counts.refused += 1,
            End::InDoubt => self.counts.in_doubt += 1,
        }
        let Sent { start, asked, .. } = command;
        match asked {
            AskedOf::Own(own) => {
                let state = self.redis[client].own.as_mut().expect("the client has own keys");
                match end {
                    // Only a part of a transaction was executed.
                    End::Told(Reply::Array(replies)) if replies.iter().any(is_refusal) => {
                        state.forget(&own);
                    }
                    End::Told(reply) if state.is_known(&own) => {
                        let args = readable(&own.args);
                        self.check(|_, _| {
                            replies::own_commands_take_effect_in_order(&args, &own.expected, &reply)
                        });
                    }
                    End::Told(_) => {}
                    End::NotDone | End::InDoubt => state.forget(&own),
                }
            }
            AskedOf::Register { slot, key, asked } => {
                let entry = self.register_entry(client, (start, &key, asked), end);
                self.workload.note(slot, key, entry);
            }
            AskedOf::Object { slot, ask, command } => {
                let entry = self.object_entry(client, start, &ask, &command, end);
                self.workload.note_object(slot, &ask, entry);
            }
            AskedOf::Reads { slot, asks, commands } => {
                let values = match end {
                    End::Told(Reply::Array(values)) if values.len() == asks.len() => {
                        values.into_iter().map(End::Told).collect()
                    }
                    End::Told(reply) => {
                        let violation = replies::reply_is_of_another("MGET", &reply);
                        self.check(|_, _| Err(violation));
                        Vec::new()
                    }
                    End::NotDone | End::InDoubt => Vec::new(),
                };
                let mut values = values.into_iter();
                let mut slot = slot;
                for (ask, command) in asks.iter().zip(&commands) {
                    let end = values.next().unwrap_or(End::NotDone);
                    let entry = self.object_entry(client, start, ask, command, end);
                    self.workload.note_object(slot, ask, entry);
                    slot = SlotId::None;
                }
            }
        }
    }

    /// Returns the entry of an operation on a register in its history; `None` if it changed and observed nothing.
    fn register_entry(
        &mut self,
        client: usize,
        (start, key, asked): (u64, &[u8], Asked),
        end: End,
    ) -> Option<Entry> {
        let reply = match end {
            End::NotDone => return None,
            End::InDoubt => None,
            End::Told(reply) => Some(reply),
        };
        let ok = Reply::Simple("OK".to_owned());
        let changed = |changed| Returned::Done { changed };
        let returned = match (asked, &reply) {
            (Asked::Read, None) => return None,
            (_, None) => Returned::InDoubt,
            (Asked::Read, Some(Reply::Null)) => {
                self.redis[client].note_seen(key, None);
                Returned::Value(None)
            }
            (Asked::Read, Some(Reply::Bulk(bytes))) => {
                let Some(value) = value_of(bytes) else {
                    let (group, _) = self.config.placement().locate(key);
                    self.check(|_, _| Err(messages::value_is_mixed(group)));
                    return None;
                };
                self.redis[client].note_seen(key, Some(bytes.clone()));
                Returned::Value(Some(value))
            }
            (Asked::Delete, Some(Reply::Integer(0))) => changed(false),
            (Asked::Delete, Some(Reply::Integer(1))) => changed(true),
            (Asked::Write(_) | Asked::Swap { .. }, Some(reply)) if *reply == ok => changed(true),
            (Asked::Swap { .. }, Some(Reply::Null)) => changed(false),
            (asked, Some(reply)) => {
                let violation = replies::reply_is_of_another(&format!("{asked:?}"), reply);
                self.check(|_, _| Err(violation));
                return None;
            }
        };
        let (start, end) = (nanos(start), self.end_time(returned == Returned::InDoubt));
        Some(Entry {
            client: self.redis_process(client, returned == Returned::InDoubt),
            start,
            end,
            asked,
            returned,
        })
    }

    /// Returns the entry of an operation on an object in its history; `None` if it changed and observed nothing.
    fn object_entry(
        &mut self,
        client: usize,
        start: u64,
        ask: &ObjectAsk,
        command: &Command,
        end: End,
    ) -> Option<ObjectEntry> {
        let answer = match end {
            End::NotDone => return None,
            End::InDoubt if ask.is_read => return None,
            End::InDoubt => Answer::InDoubt,
            End::Told(reply) => {
                if let Reply::Bulk(bytes) = &reply
                    && !is_whole(bytes)
                {
                    let (group, _) = self.config.placement().locate(ask.key());
                    self.check(|_, _| Err(messages::value_is_mixed(group)));
                    return None;
                }
                match command.told(&reply) {
                    Ok(Told::Answer(answer)) => answer,
                    Ok(Told::Unchanged) => return None,
                    Err(_) => {
                        let args = readable(&command.args);
                        self.check(|_, _| Err(replies::reply_is_of_another(&args, &reply)));
                        return None;
                    }
                }
            }
        };
        if let Answer::Shown { updates, .. } = &answer
            && let [Shown { outcome: Outcome::Done, value: Some(value), .. }] = &updates[..]
            && ask.is_read
        {
            let known = Known { version: 0, value: value.clone() };
            self.redis[client].known.insert(ask.key().to_vec(), known);
        }
        let is_open = answer == Answer::InDoubt;
        let to = if is_open { i64::MAX } else { wall_millis(self.now) };
        Some(ObjectEntry {
            client: self.redis_process(client, is_open),
            start: nanos(start),
            end: self.end_time(is_open),
            wall: Span { from: wall_millis(start), to },
            is_read: ask.is_read,
            shows_deadline: ask.shows_deadline,
            shows_version: false,
            updates: Arc::clone(&ask.updates),
            answer,
        })
    }

    fn end_time(&self, is_open: bool) -> i64 {
        if is_open { i64::MAX } else { nanos(self.now) }
    }

    /// Returns the process number of an operation.
    fn redis_process(&mut self, client: usize, is_in_doubt: bool) -> u32 {
        let process = self.redis[client].process;
        self.redis[client].process += u32::from(is_in_doubt);
        process
    }

    /// Begins the reads of the final check: each client reads its own keys.
    pub(super) fn look_back_at_own_keys(&mut self) {
        for state in &mut self.redis {
            let Some(own) = state.own.as_mut().filter(|_| !state.is_shut) else { continue };
            for command in own.last_reads() {
                let planned = Planned { args: command.args.clone(), asked: AskedOf::Own(command) };
                state.begin(self.now, planned);
            }
        }
    }

    /// Returns whether a Redis client waits for a reply.
    pub(super) fn redis_waits(&self) -> bool {
        self.redis.iter().any(|client| !client.queue.is_empty() || client.is_in_transaction())
    }
}

/// Returns whether a reply is the error of a command that was not executed.
fn is_refusal(reply: &Reply) -> bool {
    let codes = ["TRYAGAIN ", "OOM ", "CLUSTERDOWN "];
    matches!(reply, Reply::Error(text) if codes.iter().any(|code| text.starts_with(code)))
}

fn nanos(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn readable(args: &[Vec<u8>]) -> String {
    let args: Vec<String> = args.iter().map(|arg| arg.escape_ascii().to_string()).collect();
    args.join(" ")
}
