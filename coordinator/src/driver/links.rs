//! Connections: servers report on one port, clients send requests to another, and the coordinator sends orders.
//!
//! ```text
//!   servers: STARTED, HEARTBEAT -> servers -> input
//!   Effect::Dial -> orders <-> servers: TAKE-OVER, DUMP, ..., REPORT -> input
//!   clients: MAP, STATUS -> another thread (clients.rs), from snapshots
//! ```

mod newest_map;
pub(super) mod orders;
mod servers;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use kv_core::cluster::LinkId;
use kv_protocol::control_message::{self, Order};
use kv_protocol::{Member, ServerId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::context::Driver;
use super::places::index;
use crate::clients;

/// Serves both ports forever.
pub(super) async fn serve(driver: Rc<Driver>, clients: TcpListener, servers: TcpListener) {
    // The epoch must be durable before any server receives it. Otherwise the next coordinator after a crash would use
    // the same number, and the servers would reject that coordinator.
    driver.until_durable().await;
    tokio::task::spawn_local(show_status(Rc::clone(&driver)));
    let served = clients.into_std().and_then(|clients| {
        let snapshots = Arc::clone(&driver.snapshots);
        clients::start(snapshots, clients, driver.descriptors / 2)
    });
    if let Err(error) = served {
        driver.end(format!("cannot serve the clients port: {error}"));
    }
    servers::serve(driver, servers).await;
}

/// Publishes the status whenever the clients' thread requests a newer one.
async fn show_status(driver: Rc<Driver>) {
    loop {
        driver.snapshots.status_is_wanted().await;
        let mut settings = driver.plan().settings.shown();
        settings.extend(driver.dump_dir().map(|dir| ("dump-dir".to_owned(), dir)));
        driver.snapshots.publish_status(&driver.cluster(), &driver.places.hosts(), settings);
    }
}

impl Driver {
    /// Returns a new id for a server's connection.
    pub(super) fn next_link(&self) -> LinkId {
        LinkId(self.next_link.replace(self.next_link.get() + 1))
    }

    /// Sets the channel for the orders to a server, or removes it (`None`), unless another process has taken the place
    /// of this member.
    pub(super) fn set_orders(&self, member: Member, sender: Option<mpsc::Sender<Order>>) {
        if self.cluster().member(member.server) != member {
            return;
        }
        self.orders.borrow_mut()[index(member.server)] = sender;
    }

    /// Passes an order to the connection of its server.
    pub(super) fn send(&self, to: Member, order: Order) {
        let orders = self.orders.borrow();
        let sent = orders[index(to.server)].as_ref().map(|sender| sender.try_send(order));
        if !matches!(sent, Some(Ok(()))) {
            // The cluster keeps the order and issues it again on the next connection.
            tracing::warn!(
                "cannot send {} to server {} now; it is sent again on the next connection for orders",
                order.name(),
                to.server
            );
        }
    }

    /// Returns the settings that a running server receives: the coordinator's address, the policy of eviction
    /// and the memory limit.
    pub(super) fn settings_of(&self, server: ServerId) -> control_message::Settings {
        let route = &self.plan().routes[index(server)];
        control_message::Settings {
            coordinator: SocketAddr::new(route.coordinator, self.ports.servers),
            eviction: self.plan().settings.eviction,
            memory_limit: self.plan().settings.memory_limit.clone().unwrap_or_default(),
        }
    }

    /// Subscribes to changes of [`Driver::settings_of`].
    pub(super) fn settings_told(&self) -> watch::Receiver<u64> {
        self.settings_told.subscribe()
    }
}
