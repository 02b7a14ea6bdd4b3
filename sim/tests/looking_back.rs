//! Tests of the final check of a run.

use kv_history::{Asked, Entry, Returned};
use kv_sim::world::{Config, World};

fn calm(seed: u64) -> World {
    World::new(Config { faulty: 1_000_000_000, ..Config::of(seed) })
}

#[test]
fn a_run_passes_if_nothing_was_lost() {
    let mut world = calm(1);
    assert_eq!(world.run(), Ok(()));
    let compared = world.checks.compared;
    assert!(compared.digests > 0 && compared.contents > 0, "{compared:?}");
}

#[test]
fn the_final_check_detects_the_loss_of_a_key_that_no_client_reads_again() {
    let mut world = calm(1);
    let returned = Returned::Done { changed: true };
    let write = Entry { client: 1, start: 1, end: 2, asked: Asked::Write(7), returned };
    world.workload.histories.insert(b"cold".to_vec(), vec![write]);
    let violation = world.run().unwrap_err();
    assert_eq!(violation.invariant, 16, "{}", violation.words);
    assert!(violation.words.contains("cold"), "{}", violation.words);
}
