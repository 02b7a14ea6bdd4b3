//! Tests of behaviour that must not depend on the network engine. `make test` runs this program a second time over
//! epoll.

#[path = "../common/mod.rs"]
mod common;

mod engines;
mod exactly_once;
mod expiry;
mod faults;
mod hostile_bytes;
mod hostile_load;
mod narrow_link;
mod unix_sockets;
mod watchdog;
