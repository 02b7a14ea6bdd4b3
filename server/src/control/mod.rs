//! The communication with the coordinator (the link for reports, the port for orders), and the operations of the
//! process as a whole. This code runs on plain threads, and sends messages to the mailboxes of the executors.
//!
//! ```text
//!   control thread    link: STARTED, HEARTBEAT -------> coordinator
//!   orders thread     orders <--- views, DRAIN, DUMP-*, SHUTDOWN
//!                        |
//!                        v
//!                     operation, dumps: drain, dump, settings
//!                        ^
//!                        |
//!   stop thread       leaving: the server stops without orders
//! ```

pub(crate) mod dumps;
pub(crate) mod leaving;
pub(crate) mod link;
pub(crate) mod operation;
pub(crate) mod orders;
mod orders_link;
