//! How long the library keeps a connection, and what it bears on one.

mod common;

use std::time::Duration;

use common::{Fake, SOON, anytime, key_of, within};
use kv_client::{Client, Error, Options};

/// Clients here find out soon that a connection leads nowhere.
fn impatient() -> Options {
    Options { connect_timeout: Duration::from_millis(100), ..Options::default() }
}

#[test]
fn a_coordinator_that_welcomes_and_then_says_nothing_is_asked_again_on_another_connection() {
    let fake = Fake::start(3, 1);
    fake.mute_coordinator(true);
    let mut client = Client::open(&fake.endpoint(), impatient()).unwrap();
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("no map within 100ms"), "{error}");
    fake.mute_coordinator(false);
    client.put(b"k", b"v", &anytime()).unwrap();
}

#[test]
fn the_second_coordinator_is_asked_when_the_first_only_welcomes() {
    let mute = Fake::start(3, 1);
    mute.mute_coordinator(true);
    let fake = Fake::start(3, 1);
    let endpoints = format!("{},{}", mute.endpoint(), fake.endpoint());
    let mut client = Client::open(&endpoints, impatient()).unwrap();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
}
