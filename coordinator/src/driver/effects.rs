//! The effects of the cluster's state machine, each with the method that carries it out. The effects that are only
//! reported are in [`announcements`](super::announcements).

use std::rc::Rc;

use kv_core::cluster::Effect;

use super::context::Driver;
use super::links::orders;

impl Driver {
    /// Carries out effects in their order.
    pub(super) fn carry_out(self: &Rc<Driver>, effects: Vec<Effect>) {
        for effect in effects {
            self.carry_out_one(effect);
        }
    }

    fn carry_out_one(self: &Rc<Driver>, effect: Effect) {
        match effect {
            Effect::Store { number, state } => {
                tokio::task::spawn_local(Rc::clone(self).store(number, state));
            }
            Effect::Spawn { member } => self.spawn(member),
            Effect::Adopt { started } => self.adopt(started),
            Effect::Kill { member, reason } => self.kill(member, reason),
            Effect::Dial { member, address } => {
                tokio::task::spawn_local(orders::keep(Rc::clone(self), member, address));
            }
            Effect::Order { to, order } => self.send(to, order),
            Effect::Serving => self.serve(),
            Effect::Outdated { server, group, known, reported } => {
                self.end_outdated(server, group, known, reported);
            }
            Effect::StartFailed { server, reason } => self.fail(server, reason.to_string()),
            Effect::Stopped(outcome) => *self.outcome.borrow_mut() = Some(outcome),
            other => self.announce(other),
        }
    }
}
