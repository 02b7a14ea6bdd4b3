//! Tests of Redis clients on real clusters.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod differential;
mod door;
mod hostile;
mod ordered;
mod resp;
mod tools;
