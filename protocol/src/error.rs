//! Errors in received bytes.

/// A frame that cannot be read; the stream is out of sync, and the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The announced length exceeds the limit of this connection, or leaves no room for the checksum.
    #[error("a frame with an invalid length of {announced} bytes; this connection allows {limit}")]
    TooLong {
        /// The value of the length field.
        announced: u32,
        /// The maximum length on this connection, with the checksum.
        limit: usize,
    },
    /// The peer uses another version of the protocol.
    #[error(
        "a frame of protocol version {got}; only version {} is supported",
        crate::limits::FRAME_VERSION
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
    /// The checksum does not match: the bytes were corrupted in transit.
    #[error("a corrupted frame: its checksum is {got:#010x}, that of its bytes {computed:#010x}")]
    Checksum {
        /// The CRC-32C received.
        got: u32,
        /// The CRC-32C of the bytes received.
        computed: u32,
    },
}

/// A frame whose body does not have the layout of its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The body ends before the field.
    #[error("the message ends inside {field}")]
    Truncated {
        /// The truncated field.
        field: &'static str,
    },
    /// Bytes remain after the last field.
    #[error("{count} bytes follow the end of the message")]
    TrailingBytes {
        /// The number of bytes.
        count: usize,
    },
    /// A field has an invalid value.
    #[error("{field} is {value}, which is not allowed")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The sender does not have the key of this cluster.
    #[error("the sender does not have the key of this cluster")]
    WrongKey,
    /// The connection does not carry this opcode.
    #[error("opcode {opcode:#04x} is not served here; supported: {supported}")]
    UnknownOpcode {
        /// The opcode received.
        opcode: u8,
        /// The names of the opcodes that it carries.
        supported: &'static str,
    },
}
