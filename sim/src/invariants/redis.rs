//! Replies to Redis clients (invariants 31 and 32).

use kv_testkit::resp::Reply;

use crate::invariants::Violation;
use crate::network::{Actor, ConnectionNumber, Host};
use crate::redis::{AskedOf, RedisClient};
use crate::world::World;

/// The maximum time from the moment at which a command is the first one without a reply to its reply, in nanoseconds:
/// the deadline of the server by a slow clock, and the way there and back.
const REPLIES_WITHIN: u64 = 7_000_000_000;

/// Returns the violation of a reply that no command has, or that comes before its command was sent (invariant 31).
pub fn reply_without_command(number: ConnectionNumber, reply: &Reply) -> Violation {
    let words = format!("connection {} has {reply:?} without a command", number.0);
    Violation::new(31, words)
}

/// Returns the violation of bytes that are no reply (invariant 31).
pub fn reply_is_malformed(number: ConnectionNumber, error: &str) -> Violation {
    Violation::new(31, format!("connection {}: {error}", number.0))
}

/// Returns the violation of a reply that its command cannot have (invariant 31): the reply is that of another command,
/// or an error without a cause.
pub fn reply_is_of_another(args: &str, reply: &Reply) -> Violation {
    Violation::new(31, format!("{args} has the reply {reply:?}"))
}

/// Checks that the first command without a reply gets it before its deadline, plus a margin (invariant 31). Times in
/// which the process of the connection cannot work, or cannot be reached, do not count.
///
/// The function is called at every wake-up of a client that waits.
pub fn replies_in_time(world: &World, client: &RedisClient) -> Result<(), Violation> {
    let Some(command) = client.queue.front() else { return Ok(()) };
    // Each command of a transaction with several steps has its own deadline.
    let commands = match &command.asked {
        AskedOf::Own(own) => own.commands as u64,
        _ => 1,
    };
    if world.now < client.waits_since + commands * REPLIES_WITHIN {
        return Ok(());
    }
    let number = client.connection.map_or(0, |number| number.0);
    let words = format!(
        "connection {number} has no reply to a command of {} ns, for which it waits since {} ns: {:?}",
        command.start, client.waits_since, command.asked
    );
    Err(Violation::new(31, words))
}

/// Checks that the server does not end a connection with complete commands without replies (invariant 31).
///
/// The function is called when a client observes the end of its connection, before its state changes. A process that has
/// ended, a broken connection, and a reply that announced the end excuse missing replies.
pub fn end_has_a_cause(
    world: &World,
    client: &RedisClient,
    number: ConnectionNumber,
) -> Result<(), Violation> {
    let is_alive = match world.network.get(number).ends[1] {
        Actor::Shard { process, .. } => world.processes[process].alive,
        _ => false,
    };
    let first = client.queue.front().filter(|command| command.end <= client.sent());
    match first {
        Some(command) if is_alive && !client.is_ending && !world.network.is_broken(number) => {
            let how = if client.is_shut { "half-closed" } else { "open" };
            let words = format!(
                "the server ends the {how} connection {} without a reply to a command of {} ns, one of {}: {:?}",
                number.0,
                command.start,
                client.queue.len(),
                command.asked
            );
            Err(Violation::new(31, words))
        }
        _ => Ok(()),
    }
}

/// Checks a reply to a command on a key that only this client uses (invariant 32): the commands of a connection on one
/// key take effect in the order of the pipeline, each once.
pub fn own_commands_take_effect_in_order(
    args: &str,
    expected: &Reply,
    reply: &Reply,
) -> Result<(), Violation> {
    if expected == reply {
        return Ok(());
    }
    let words = format!("{args} on a key of its own has the reply {reply:?}, not {expected:?}");
    Err(Violation::new(32, words))
}

/// Returns whether the process of a connection works, and can be reached by the client.
pub fn is_served(world: &World, number: ConnectionNumber, host: Host) -> bool {
    let Actor::Shard { process, .. } = world.network.get(number).ends[1] else { return false };
    let process = &world.processes[process];
    let place = Host(process.place);
    process.is_at_work(world.now)
        && !world.network.is_cut(host, place)
        && !world.network.is_cut(place, host)
}
