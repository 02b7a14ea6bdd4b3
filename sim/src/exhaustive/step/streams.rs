//! Connections between the replicas of a shard: creation, use, breaks and removal.

use std::collections::VecDeque;

use super::replica::Place;
use crate::exhaustive::replica::FrameId;
use crate::exhaustive::world::{CLOSED, Connection, End, World};

/// Adds a new connection, with a hello in transit to the other process.
pub(super) fn connect(world: &mut World, at: Place, other: usize, hello: FrameId) {
    let small = |n: usize| u8::try_from(n).expect("processes are few");
    world.connections.push(Connection {
        shard: small(at.s),
        ends: [(small(at.p), End::Attached), (small(other), End::Pending)],
        to: [VecDeque::new(), VecDeque::from([hello])],
    });
}

/// Makes the connection the stream of the dialled replica.
pub(super) fn accept(connection: &mut Connection) {
    connection.ends[1].1 = End::Attached;
}

/// Sends a rejection from the dialled side, and closes the connection.
pub(super) fn refuse(connection: &mut Connection, frame: FrameId) {
    if connection.ends[0].1 != End::Gone {
        connection.to[0].push_back(frame);
    }
    end(connection, 1);
}

/// Sends on the current stream. After a break nothing arrives, even if this side has not observed the break yet.
pub(super) fn send(world: &mut World, at: Place, frame: FrameId) {
    if let Some((connection, side)) = attached(world, at)
        && connection.ends[1 - side].1 != End::Gone
        && connection.to[1 - side].back() != Some(&CLOSED)
    {
        connection.to[1 - side].push_back(frame);
    }
}

/// Closes the current stream.
pub(super) fn close(world: &mut World, at: Place) {
    if let Some((connection, side)) = attached(world, at) {
        end(connection, side);
    }
}

/// Returns the connection that is a replica's stream, and the replica's side of it.
fn attached(world: &mut World, at: Place) -> Option<(&mut Connection, usize)> {
    world.connections.iter_mut().find_map(|connection| {
        let is_end = |(q, end): (u8, End)| usize::from(q) == at.p && end == End::Attached;
        if usize::from(connection.shard) != at.s {
            return None;
        }
        let side = (0..2).find(|side| is_end(connection.ends[*side]))?;
        Some((connection, side))
    })
}

/// Returns the process at the other end of a replica's stream.
pub(super) fn other_end(world: &mut World, at: Place) -> Option<usize> {
    attached(world, at).map(|(connection, side)| connection.ends[1 - side].0.into())
}

/// Breaks a connection: frames in transit are lost, and both sides observe the end.
pub(super) fn cut(connection: &mut Connection) {
    for side in 0..2 {
        connection.to[side].clear();
        if connection.ends[side].1 != End::Gone {
            connection.to[side].push_back(CLOSED);
        }
    }
}

/// Closes one side of a connection. The other side observes the end after all frames sent before.
fn end(connection: &mut Connection, side: usize) {
    connection.ends[side].1 = End::Gone;
    connection.to[side].clear();
    if connection.ends[1 - side].1 != End::Gone {
        connection.to[1 - side].push_back(CLOSED);
    }
}

/// Closes all connections of a dead process.
pub(super) fn end_all(world: &mut World, p: usize) {
    for connection in &mut world.connections {
        for side in 0..2 {
            if usize::from(connection.ends[side].0) == p && connection.ends[side].1 != End::Gone {
                end(connection, side);
            }
        }
    }
}

/// Removes connections that both sides have closed.
pub(super) fn sweep(world: &mut World) {
    let is_over = |connection: &Connection| connection.ends.iter().all(|end| end.1 == End::Gone);
    world.connections.retain(|connection| !is_over(connection));
}
