//! libkvclient: the C surface over `kv-client`, and nothing else.
//!
//! ```text
//!   C program, any thread -> kvc_put, kvc_get, …   -> panic boundary -> pool -> a kv_client::Client
//!                            (handle, text, batch)    (panic)           (pool, idle)
//!   one thread at a time  -> kvc_cq_submit, …_poll -> panic boundary -> a kv_client::Client of its own
//!                            (cq)
//! ```
//!
//! No thread is started, no signal handler or exit handler set, nothing is logged but to a function of
//! the program; a defect alone also leaves Rust's words for a panic on standard error. The header
//! `include/kvclient.h` is generated from the comments here, so they speak to C programmers.

#![allow(non_camel_case_types)] // The names are those of the C header.
#![allow(clippy::missing_safety_doc)] // The contract of each function is its text in the header.

// They stand apart, as the header shows them in this order.
mod error;
mod fork;

mod events;

mod options;

mod buffer;

mod handle;

mod batch;

mod text;

mod cq;

mod doubt;

mod ping;

mod interrupt;

mod statistics;

mod inherited;
mod panic;
mod target;

pub use batch::*;
pub use buffer::*;
pub use cq::*;
pub use doubt::*;
pub use error::*;
pub use events::*;
pub use handle::*;
pub use inherited::*;
pub use interrupt::*;
pub use options::*;
pub use ping::*;
pub use statistics::*;
pub use text::*;

/// The version of this header: major << 16 | minor << 8 | patch. Compare with kvc_version().
pub const KVC_VERSION: u32 = 0x000100;
/// The first number of this header's version.
pub const KVC_VERSION_MAJOR: u32 = 0;
/// The second number of this header's version.
pub const KVC_VERSION_MINOR: u32 = 1;
/// The third number of this header's version.
pub const KVC_VERSION_PATCH: u32 = 0;

/// The version of the library that the program runs with, in the form of KVC_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_version() -> u32 {
    KVC_VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_package() {
        let numbers: Vec<u32> =
            env!("CARGO_PKG_VERSION").split('.').map(|n| n.parse().unwrap()).collect();
        assert_eq!(numbers, [KVC_VERSION_MAJOR, KVC_VERSION_MINOR, KVC_VERSION_PATCH]);
        assert_eq!(kvc_version(), numbers[0] << 16 | numbers[1] << 8 | numbers[2]);
    }
}
