//! RESP, the wire format of Redis: the parser of commands and the writer of replies.

mod reply;

pub use reply::{Reply, Version};
