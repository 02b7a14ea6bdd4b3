//! The client library: blocking calls and a pipelined interface over one epoll descriptor, without a runtime or
//! threads.
//!
//! ```text
//!   put get delete update scan ...      submit / poll
//!            |                               |
//!            +------------> client <---------+          one call at a time (`&mut self`)
//!                             |
//!                           engine        one turn: timers, sends, epoll, responses
//!              +--------------+---------------+-------------+
//!              |              |               |             |
//!           router         session        map_source    connection
//!        key -> server   seq numbers,    requests the    one socket,
//!        (no I/O)        window of 64    map             frames in, output
//!
//!   address: TCP, or the socket of a server in a directory
//!   operation: its whole request, in memory from `free_list` --> output: sent from there, many at once
//!   caller    <-- the value, in the receive buffer           <-- frames in
//! ```
//!
//! A [`Client`] belongs to one thread at a time. Many threads share the connections of a [`SharedClient`]. Every
//! operation ends at its deadline, whatever the servers do. A write is executed at most once: a retry reuses its number
//! unless no earlier attempt can have been executed. An unknown outcome is reported as [`Error::InDoubt`].
//!
//! ```no_run
//! use kv_client::{Client, OpOptions, Options};
//!
//! let mut client = Client::open("localhost:7000", Options::default())?;
//! client.put(b"greeting", b"hello", &OpOptions::default())?;
//! let value = client.get(b"greeting", &OpOptions::default())?;
//! assert_eq!(value.bytes, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod backoff;
mod client;
mod completion;
mod connection;
mod conveniences;
mod doubt;
mod engine;
mod error;
mod events;
mod free_list;
mod fresh_ids;
mod inherited;
mod interrupt;
mod landing;
mod log;
mod map_source;
mod operation;
mod options;
mod output;
mod poller;
mod route_cache;
mod router;
mod scan;

mod shared;
mod statistics;
mod table;
mod timer;
mod timers;
mod updated;
mod updates;
mod verbs;
mod waiting;

pub use address::Address;
pub use client::{Client, Ticket, Value, ValuePart, Written};
pub use completion::{Completion, OnEnd, Outcome, Reply, SubmitError};
pub use doubt::Doubt;
pub use error::{Action, Error, OpenError};
pub use events::{Event, Events, is_in_callback};
pub use inherited::Descriptors;
pub use interrupt::Interrupt;
pub use kv_protocol::client_message::{Condition, Part, ReplicaRole, Status};
pub use kv_protocol::ids::{MapRevision, SequenceNumber, ServerId, WallTime};
pub use kv_protocol::update;
pub use kv_protocol::update::{Expiry, Precondition, Update};
pub use landing::{Landing, LongValue, Room, copy_unless_there};
pub use log::{Level, Log};
pub use operation::Op;
pub use options::{Endpoints, MAX_IN_FLIGHT, OpOptions, Options, is_deadline};
pub use scan::{Page, ScanEntries, ScanEntry, ScanOptions, ScanProgress, prefix_pattern};
pub use shared::SharedClient;
pub use statistics::{ServerStatistics, Statistics};
pub use updated::{Batch, BatchResult, Expiring, PutOptions, Updated};
