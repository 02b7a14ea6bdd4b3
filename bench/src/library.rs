//! One client of the client library, driven through its pipelined interface at a fixed depth.

use std::time::Duration;

use anyhow::{Context as _, bail};
use kv_client::{Client, Completion, Error, Op, OpOptions, SubmitError};

use crate::arrival_rate::ArrivalRate;
use crate::driver::{Driver, Lane, Outcome};

/// The longest wait before the clock is checked again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Drives the client until no more operations may begin and all have ended. Returns the final state of the schedule.
pub(crate) fn run(
    driver: &mut Driver<'_>,
    client: &mut Client,
    lane: &mut Lane,
    mut arrival_rate: ArrivalRate,
) -> anyhow::Result<ArrivalRate> {
    let options = OpOptions::default();
    let mut done: Vec<Completion> = Vec::new();
    let mut is_over = false;
    loop {
        let now_ns = driver.control.now_ns();
        while !is_over && lane.has_room() {
            let Some(start_ns) = arrival_rate.begin(now_ns) else { break };
            let Some(request) = driver.begin(lane, start_ns, now_ns) else {
                is_over = true;
                break;
            };
            let (key, slot) = (request.key, request.slot);
            let op = match request.value {
                Some(value) => Op::Put { key, value },
                None => Op::Get { key },
            };
            match client.submit(op, &options, slot.into()) {
                Ok(()) => {}
                Err(error @ SubmitError::Full { .. }) => {
                    bail!("{error}; use a smaller --depth for values this large")
                }
                Err(error) => {
                    let why = error.to_string();
                    driver.end(lane, slot, Outcome::Failed(&why), now_ns)?;
                }
            }
        }
        is_over |= now_ns >= driver.control.end_ns || driver.control.is_aborted();
        if is_over && lane.is_idle() {
            return Ok(arrival_rate);
        }
        let until_due = match arrival_rate.next_ns() {
            Some(due) if !is_over && lane.has_room() => {
                Duration::from_nanos(due.saturating_sub(driver.control.now_ns()))
            }
            _ => LOOK_EVERY,
        };
        let wait = until_due.min(LOOK_EVERY);
        if lane.is_idle() {
            // If nothing is in flight, a poll returns at once, so the thread sleeps.
            std::thread::sleep(wait);
            continue;
        }
        client.poll(wait, &mut done).context("wait for responses")?;
        let now_ns = driver.control.now_ns();
        for completion in done.drain(..) {
            let slot = u32::try_from(completion.tag).context("read a completion's tag")?;
            let why;
            let outcome = match &completion.result {
                Ok(outcome) if outcome.copies == 1 => Outcome::SingleCopy,
                Ok(outcome) => Outcome::Done(&outcome.value),
                Err(Error::NotFound { .. }) => Outcome::Missing,
                Err(error) => {
                    why = error.to_string();
                    Outcome::Failed(&why)
                }
            };
            driver.end(lane, slot, outcome, now_ns)?;
        }
    }
}
