//! RESP, the wire format of Redis: the parser of commands and the writer of replies.

mod ahead;
mod double;
mod parser;
mod reply;

pub use ahead::KeysAhead;
pub use parser::{
    Args, CommandParser, MAX_ARGS, MAX_BULK_BYTES, MAX_COMMAND_BYTES, MAX_LINE_BYTES, ParseError,
    Parsed,
};
pub use reply::{Reply, Version};
