//! The choice of the commands of Redis clients, on the same keys as the operations of native clients.

use std::sync::Arc;

use kv_history::object::Text;
use kv_testkit::objects::{Choice, Class};

use super::objects::Chosen;
use super::*;
use crate::clock::wall_millis;
use crate::redis::command::Command;
use crate::redis::{AskedOf, Planned, RedisClient};

/// The probability, per mille, that a command is one on a key of the client's own.
const OWN_PER_MILLE: u64 = 250;
/// The probability, per mille, that a command on a family concerns all of its keys.
const ALL_KEYS_PER_MILLE: u64 = 350;

impl Workload {
    /// Chooses the next command of a Redis client.
    pub fn plan_command(
        &mut self,
        random: &mut Random,
        now: u64,
        client: &mut RedisClient,
    ) -> Planned {
        let is_own = client.is_in_transaction() || random.per_mille(OWN_PER_MILLE);
        if let Some(own) = client.own.as_mut().filter(|_| is_own) {
            let command = own.choose(random);
            return Planned { args: command.args.clone(), asked: AskedOf::Own(command) };
        }
        match self.objects.choose_slot(random) {
            Some(chosen) => self.plan_object_command(random, now, client, chosen),
            None => self.plan_register_command(random, client),
        }
    }

    fn plan_register_command(&mut self, random: &mut Random, client: &RedisClient) -> Planned {
        let (at, key) = self.take_slot(random);
        let (asked, _, value) = self.ask(random, at < HOT_SLOTS, None);
        let seen = client.seen_value(&key).filter(|_| random.per_mille(500));
        let name = |name: &str| name.as_bytes().to_vec();
        let (asked, args) = match (asked, seen) {
            (Asked::Write(new), Some((old, bytes))) => {
                let args = vec![name("SET"), key.clone(), value, name("IFEQ"), bytes.to_vec()];
                (Asked::Swap { old: Some(old), new }, args)
            }
            (Asked::Write(new), None) if random.per_mille(200) => {
                let args = vec![name("SET"), key.clone(), value, name("NX")];
                (Asked::Swap { old: None, new }, args)
            }
            (Asked::Delete, _) => (asked, vec![name("DEL"), key.clone()]),
            (Asked::Read, _) => (asked, vec![name("GET"), key.clone()]),
            (asked, _) => (asked, vec![name("SET"), key.clone(), value]),
        };
        Planned { args, asked: AskedOf::Register { slot: SlotId::Register(at), key, asked } }
    }

    fn plan_object_command(
        &mut self,
        random: &mut Random,
        now: u64,
        client: &RedisClient,
        Chosen { at, class, keys, key }: Chosen,
    ) -> Planned {
        let slot = SlotId::Object(at);
        let concerns_all = class == Class::Family && random.per_mille(ALL_KEYS_PER_MILLE);
        let is_read = random.per_mille(350);
        let command = match (is_read, concerns_all) {
            (true, true) => return Planned::reads(slot, keys),
            (true, false) => Command::get(&keys, key),
            (false, true) if random.per_mille(300) => Command::delete_all(&keys),
            (false, true) => {
                let values: Vec<Text> = keys.iter().map(|_| self.next_number()).collect();
                Command::set_all(&keys, &values, random.per_mille(300))
            }
            (false, false) => {
                let (known, now, next_value) =
                    (&client.known, wall_millis(now), &mut self.next_value);
                let mut choice = Choice { random, known, keys: &keys, now, next_value };
                let update = choice.updates(class, key).swap_remove(0);
                Command::of_update(&keys, update)
            }
        };
        let ask = ObjectAsk::of_command(keys, &command);
        Planned { args: command.args.clone(), asked: AskedOf::Object { slot, ask, command } }
    }

    /// Returns a number that no other write of the run has.
    fn next_number(&mut self) -> Text {
        self.next_value += 1;
        (self.next_value * 1_000).to_string().into_bytes().into()
    }
}

impl Planned {
    /// Creates an MGET of all keys of an object.
    fn reads(slot: SlotId, keys: Arc<[Vec<u8>]>) -> Planned {
        let commands: Vec<Command> = (0..keys.len()).map(|key| Command::get(&keys, key)).collect();
        let of = |command| ObjectAsk::of_command(Arc::clone(&keys), command);
        let asks = commands.iter().map(of).collect();
        let args = [b"MGET".to_vec()].into_iter().chain(keys.iter().cloned()).collect();
        Planned { args, asked: AskedOf::Reads { slot, asks, commands } }
    }
}
