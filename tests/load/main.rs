//! Tests with many connections and much data: memory, storms of connections, random entries.

#[path = "../common/mod.rs"]
mod common;

mod connection_memory;
mod memory;
mod random_data;
mod storms;
