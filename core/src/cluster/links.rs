//! Links, the connections that servers open to the coordinator: admission, heartbeats, and the end of a link.
//!
//! Every message on a link is validated first: its sender may belong to another cluster or be another process, or its
//! link may have been replaced. The message may also name something that this cluster does not have.

use std::net::SocketAddr;

use kv_protocol::control_message::{Heartbeat, Started};
use kv_protocol::map::ServerState;
use kv_protocol::{Member, ServerId, Time};

use super::{Cluster, DownCause, Effect, Ignored, StartedRefused};
use crate::mutations::{self, Mutation};

/// The id of one connection of a server to the coordinator, assigned by the caller. It distinguishes the end of an
/// old connection from the end of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl Cluster {
    /// Handles a STARTED report, which a server sends on a new connection and which names its addresses.
    ///
    /// # Errors
    /// [`StartedRefused`] with the reason if the process is not admitted; nothing is changed.
    pub fn on_started(
        &mut self,
        now: Time,
        link: LinkId,
        started: &Started,
        sink: &mut Vec<Effect>,
    ) -> Result<(), StartedRefused> {
        self.check_started(started)?;
        let server = self.server_mut(started.member.server);
        if server.started.is_none() {
            let address = SocketAddr::new(started.address, started.coord_port);
            sink.push(Effect::Dial { member: started.member, address });
        }
        server.started = Some(*started);
        server.link = Some(link);
        // The epoch that a server has accepted may increase; its addresses do not change.
        let known = &mut self.memory.decided.servers[usize::from(started.member.server.0)];
        known.started.get_or_insert(*started);
        self.heard(now, started.member.server, sink);
        self.revision += 1;
        self.advance(now, sink);
        Ok(())
    }

    fn check_started(&self, started: &Started) -> Result<(), StartedRefused> {
        let Member { server, incarnation } = started.member;
        if started.cluster != self.config.cluster {
            let ours = self.config.cluster;
            return Err(StartedRefused::OtherCluster { ours, theirs: started.cluster });
        }
        let Some(known) = self.servers.get(usize::from(server.0)) else {
            return Err(StartedRefused::NoSuchServer { server, servers: self.count() });
        };
        if known.member != started.member {
            return Err(StartedRefused::UnknownIncarnation { server, incarnation });
        }
        if known.exited {
            return Err(StartedRefused::Exited { server, incarnation });
        }
        if started.shards != self.config.shards {
            let ours = self.config.shards;
            return Err(StartedRefused::OtherShards { ours, theirs: started.shards });
        }
        if started.epoch.number > self.config.epoch.number {
            let ours = self.config.epoch.number;
            return Err(StartedRefused::LaterEpoch { ours, theirs: started.epoch.number });
        }
        if let Some(earlier) = known.started.filter(|earlier| !same_process(earlier, started)) {
            let (earlier, later) = (Box::new(earlier), Box::new(*started));
            return Err(StartedRefused::OtherPorts { server, incarnation, earlier, later });
        }
        // A server reconnects only when its link is lost. If heartbeats still arrive over another connection, the
        // sender may be another process that uses the server's identity. If it is the server itself, its old link soon
        // counts as silent, and a later attempt succeeds.
        if known.link.is_some() && known.state == ServerState::Up {
            return Err(StartedRefused::Linked { server, incarnation });
        }
        Ok(())
    }

    /// Records the heartbeat of a server over the connection on which it was admitted.
    ///
    /// # Errors
    /// [`Ignored`] if the connection was replaced, or if the heartbeat names another incarnation or something that the
    /// cluster does not have.
    pub fn on_heartbeat(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        heartbeat: Heartbeat,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        if !mutations::is_open(Mutation::OldIncarnationHeartbeat) {
            self.check_link(link, server)?;
            let (named, current) = (heartbeat.incarnation, self.server(server).member.incarnation);
            if named != current {
                return Err(Ignored::OtherIncarnation { named, current });
            }
        }
        self.check_heartbeat(&heartbeat)?;
        self.check_memory(&heartbeat, server, sink)?;
        self.note_flush(server, &heartbeat);
        let views = self.views();
        let without_stream = heartbeat.replicas.iter().any(|r| {
            let view = &views[usize::from(r.group.0)];
            r.state.is_primary() && r.view == view.version && view.other().is_some() && !r.connected
        });
        let known = self.server_mut(server);
        let refused = known.heartbeat.as_ref().map(|(_, last)| last.out_of_space);
        if refused.is_some_and(|refused| heartbeat.out_of_space > refused) {
            known.signs.refused_at = Some(now);
        }
        known.signs.orders_since = None;
        known.beats_without_stream =
            if without_stream { known.beats_without_stream.saturating_add(1) } else { 0 };
        known.heartbeat = Some((now, heartbeat));
        self.heard(now, server, sink);
        self.advance(now, sink);
        Ok(())
    }

    pub(super) fn check_link(&self, link: LinkId, server: ServerId) -> Result<(), Ignored> {
        if self.server(server).link == Some(link) { Ok(()) } else { Err(Ignored::OldLink) }
    }

    /// Checks that a heartbeat names only groups, shards and epochs of this cluster. If this coordinator founded the
    /// cluster, checks the views too.
    fn check_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), Ignored> {
        if heartbeat.epoch.number > self.config.epoch.number {
            return Err(Ignored::Impossible("an epoch"));
        }
        for replica in &heartbeat.replicas {
            let Some(view) = self.views().get(usize::from(replica.group.0)) else {
                return Err(Ignored::Impossible("a group"));
            };
            if replica.shard.0 >= self.config.shards {
                return Err(Ignored::Impossible("a shard"));
            }
            if replica.view > view.version && self.founded_here() {
                return Err(Ignored::Impossible("a view"));
            }
        }
        Ok(())
    }

    /// Returns whether this coordinator founded the cluster.
    fn founded_here(&self) -> bool {
        self.judge_from == Time::default()
    }

    /// Checks the heartbeat of a server for a view newer than the stored state. In a server's first heartbeat such a
    /// view shows that the state of this coordinator is outdated, for example restored from a backup. The coordinator
    /// cannot reconstruct the events since then. In a later heartbeat such a view is impossible.
    fn check_memory(
        &mut self,
        heartbeat: &Heartbeat,
        server: ServerId,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        let views = self.views();
        let newer = heartbeat.replicas.iter().find_map(|replica| {
            let known = views[usize::from(replica.group.0)].version;
            (replica.view > known).then_some((replica.group, known, replica.view))
        });
        let Some((group, known, reported)) = newer else { return Ok(()) };
        // A server whose first heartbeat matched has received every later view from this coordinator.
        let fitted = self.server(server).heartbeat.is_some();
        if !self.is_outdated && !fitted {
            self.is_outdated = true;
            sink.push(Effect::Outdated { server, group, known, reported });
        }
        Err(Ignored::Impossible("a view"))
    }

    /// Returns whether each process of an earlier coordinator has reported, is proven dead, or has not reported in
    /// time. Until then no view is decided.
    pub(super) fn has_asked_all(&self) -> bool {
        self.now >= self.judge_from
            || self.servers.iter().all(|server| {
                server.started.is_none() || server.exited || server.heartbeat.is_some()
            })
    }

    /// Handles the end of a server's connection. If the connection was admitted, the server is down until it
    /// reconnects.
    pub fn on_link_lost(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        sink: &mut Vec<Effect>,
    ) {
        if self.check_link(link, server).is_err() {
            return;
        }
        self.server_mut(server).link = None;
        self.set_down(now, server, DownCause::LinkLost, sink);
        self.advance(now, sink);
    }
}

fn same_process(one: &Started, other: &Started) -> bool {
    let process = |s: &Started| (s.pid, s.start_time, s.namespace);
    let place = |s: &Started| (s.address, s.clients_port, s.servers_port, s.coord_port);
    process(one) == process(other) && place(one) == place(other)
}
