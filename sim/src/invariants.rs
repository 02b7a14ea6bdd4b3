//! The promises of consistency.md §11, one a file. Those that concern events as they happen (5 for
//! epochs, 9, 11, 17, 19, 20) are looked at where these events are carried out, in `world`; those
//! marked R there (4, 8, 10, 12, 14, 15) are asserted by the machines themselves.

pub mod acked_is_held;
pub mod copies_agree;
pub mod lease_before_grace;
pub mod linearizable;
pub mod one_server;
pub mod taker_has_all;
pub mod union_is_true;
pub mod versions_grow;
