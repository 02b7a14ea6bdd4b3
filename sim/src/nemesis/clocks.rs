//! Steps of wall clocks: the clock of a host is set to another time within the bound of the run.

use super::{LOOK_AGAIN, has_write_in_flight, step_of};
use crate::clock::WallClock;
use crate::event::Happening;
use crate::world::World;

/// The name under which steps are counted.
pub const CLOCK_STEP: &str = "clock step";
/// The number of checks for a write in flight before a clock is set anyway.
const TIMEOUT: u8 = 100;

/// Plans the first step of a run.
pub fn plan(world: &mut World) {
    if world.config.wall_bound > 0 {
        let pause = world.random.between(100_000_000, 2_000_000_000);
        world.after(pause, Happening::StepClock(TIMEOUT));
    }
}

/// Sets the clock of a random host once a write is in flight in one of its groups, or after `timeout` more checks.
pub fn step(world: &mut World, timeout: u8) {
    if world.is_healing {
        return;
    }
    let place = world.random.index(usize::from(world.config.servers));
    let with_write = has_write_in_flight(world, place);
    if !with_write && timeout > 0 {
        return world.after(LOOK_AGAIN, Happening::StepClock(timeout - 1));
    }
    let (bound, now) = (world.config.wall_bound, world.now);
    let before = world.walls[place].read(now);
    world.walls[place] = WallClock::new(bound, now, &mut world.random);
    let after = world.walls[place].read(now);
    world.counts.note_fault(CLOCK_STEP, step_of(world, place), with_write);
    let millis = after.millis().cast_signed() - before.millis().cast_signed();
    world.note_place(place, format_args!("fault: {CLOCK_STEP} of {millis} ms at place {place}"));
    plan(world);
}
