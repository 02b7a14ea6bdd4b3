//! Orders to servers. Each order is kept until its report arrives or a newer order replaces it, and is sent again over
//! every new connection.

use kv_protocol::control_message::{Order, OrderFailure, OrderKind, Report};
use kv_protocol::{GroupId, Member, OrderId, ServerId, Time};

use super::server::Server;
use super::{Cluster, Effect, Ignored, StartFailure};
#[cfg(feature = "mutations")]
use crate::mutations::{self, Mutation};

impl Cluster {
    /// Gives an order and returns its id. The order is sent at once if the connection is up, otherwise when the
    /// connection is established.
    pub(super) fn give(
        &mut self,
        to: ServerId,
        kind: OrderKind,
        sink: &mut Vec<Effect>,
    ) -> OrderId {
        let order = Order { id: self.next_order, kind };
        self.next_order.0 += 1;
        let server = self.server_mut(to);
        server.outstanding.push(order);
        if server.orders_connected {
            sink.push(Effect::Order { to: server.member, order });
        }
        order.id
    }

    /// Records that the connection for orders is up, and sends the outstanding orders over it.
    pub fn on_orders_connected(&mut self, member: Member, sink: &mut Vec<Effect>) {
        let now = self.now;
        let server = self.server_mut(member.server);
        if server.member != member || server.exited {
            return;
        }
        server.orders_connected = true;
        if server.link.is_none() {
            server.signs.orders_since.get_or_insert(now);
        }
        sink.extend(server.outstanding.iter().map(|&order| Effect::Order { to: member, order }));
    }

    /// Records that the connection for orders is lost. Outstanding orders wait for the next connection.
    pub fn on_orders_lost(&mut self, member: Member) {
        let server = self.server_mut(member.server);
        if server.member == member {
            server.orders_connected = false;
            server.signs.orders_since = None;
        }
    }

    /// Handles a server's report on an order.
    ///
    /// # Errors
    /// [`Ignored`] for a late or repeated report, or one of another incarnation or view; it changes nothing.
    pub fn on_report(
        &mut self,
        now: Time,
        member: Member,
        report: Report,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        let server = self.server_mut(member.server);
        if server.member != member {
            let (named, current) = (member.incarnation, server.member.incarnation);
            return Err(Ignored::OtherIncarnation { named, current });
        }
        let is_meant = |order: &Order| order.id == report.id && order.view_version() == report.view;
        let at = server.outstanding.iter().position(is_meant);
        let order = match at {
            Some(at) => server.outstanding.remove(at),
            None => server.retired_order(&report).ok_or(Ignored::NotOutstanding)?,
        };
        let done = report.outcome.is_ok();
        let outcome = report.outcome.as_ref().copied();
        let again = self.note_stop_report(now, member.server, &order, outcome, sink);
        match &order.kind {
            OrderKind::View(view) => self.note_view_report(now, member.server, view, done),
            OrderKind::Probe if done => {
                self.note_probe(now, &order);
                self.note_vouch(now, &order);
            }
            _ => {}
        }
        if done {
            self.alarms.order_done(member.server, order.name());
        }
        if let Err(OrderFailure { reason, .. }) = report.outcome {
            let order = order.name();
            self.alarms.order_failed(now, member.server, order, &reason);
            sink.push(Effect::OrderFailed { member, order, reason: reason.clone(), again });
            self.fail_start(member.server, StartFailure::OrderFailed { order, reason }, sink);
        }
        self.finish_start();
        self.advance(now, sink);
        Ok(())
    }
}

impl Server {
    /// Drops the outstanding orders that carry a view of a group.
    pub(super) fn retire(&mut self, group: GroupId) {
        let is_of_group = |order: &Order| order.view().is_some_and(|view| view.group == group);
        #[cfg(feature = "mutations")]
        self.retired.extend(self.outstanding.iter().copied().filter(is_of_group));
        self.outstanding.retain(|order| !is_of_group(order));
    }

    /// Returns the order of an outdated report if a mutation accepts such reports. The simulator must detect this
    /// mutation.
    fn retired_order(&mut self, report: &Report) -> Option<Order> {
        #[cfg(feature = "mutations")]
        if mutations::is_open(Mutation::StaleUpdatedAccepted) {
            return self.retired.iter().copied().find(|order| order.id == report.id);
        }
        let _ = report;
        None
    }
}
