//! What can be wrong with received bytes.

/// A frame cannot be taken off the stream; the connection has lost its place and must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field is beyond what this connection may carry.
    #[error("a frame that announces a body of {announced} bytes; at most {limit} are allowed here")]
    TooLong {
        /// What the length field says.
        announced: u32,
        /// The bound of this connection.
        limit: usize,
    },
    /// The peer speaks another version of the protocol.
    #[error(
        "a frame of protocol version {got}; version {} is supported",
        crate::limits::PROTOCOL_VERSION
    )]
    UnsupportedVersion {
        /// The version byte received.
        got: u8,
    },
    /// Reserved bits are set.
    #[error("a frame with reserved bits set ({got:#06x}); they must be zero")]
    ReservedBits {
        /// The reserved field received.
        got: u16,
    },
    /// The checksum does not match: the bytes were damaged on their way.
    #[error("a frame with checksum {got:#010x} whose bytes give {computed:#010x}")]
    Checksum {
        /// The CRC-32C received.
        got: u32,
        /// The CRC-32C of the bytes received.
        computed: u32,
    },
}

/// The body of a frame does not have the layout of its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body ends before the field.
    #[error("the message ends inside {field}")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
    },
    /// Bytes are left after the last field.
    #[error("{count} bytes follow the end of the message")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A field has a value that it must not have.
    #[error("{field} is {value}, which is not allowed")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Its sender does not have the key of this cluster.
    #[error("the sender does not have the key of this cluster")]
    WrongKey,
    /// The opcode is not one that this connection carries.
    #[error("opcode {opcode:#04x} is not served here; supported: {supported}")]
    UnknownOpcode {
        /// The opcode received.
        opcode: u8,
        /// The names of those that are.
        supported: &'static str,
    },
}
