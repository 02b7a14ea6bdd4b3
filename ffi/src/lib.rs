//! libkvclient: the C interface of `kv-client`. It adds no function of its own.
//!
//! ```text
//!   C program, any thread -> kvc_put, kvc_get, …   -> panic boundary -> the handle's kv_client::SharedClient
//!                            (handle, batch, text,    (panic)
//!                            update, changes)
//!   one thread at a time  -> kvc_cq_submit, …_poll -> panic boundary -> the queue's own kv_client::Client
//!                            (cq, operation)
//! ```
//!
//! The library starts no thread and sets no signal or exit handler. It logs only to a function of the program; a defect
//! also prints Rust's panic message to standard error. The header `include/kvclient.h` is generated from the comments
//! here, so they address C programmers.

#![allow(non_camel_case_types)] // The names are those of the C header.
#![allow(clippy::missing_safety_doc)] // The header states the contract of each function.

// The header follows the order of these modules. The blank lines between them prevent rustfmt from sorting them.
mod error;
mod fork;

mod events;

mod options;

mod buffer;

mod handle;

mod update;

mod changes;

mod batch;

mod text;

mod scan;

mod operation;

mod cq;

mod doubt;

mod ping;

mod interrupt;

mod statistics;

mod inherited;
mod panic;
mod results;
mod target;

pub use batch::*;
pub use buffer::*;
pub use changes::*;
pub use cq::*;
pub use doubt::*;
pub use error::*;
pub use events::*;
pub use handle::*;
pub use inherited::*;
pub use interrupt::*;
pub use operation::*;
pub use options::*;
pub use ping::*;
pub use scan::*;
pub use statistics::*;
pub use text::*;
pub use update::*;

/// The version of this header: major << 16 | minor << 8 | patch. Compare with kvc_version().
pub const KVC_VERSION: u32 = 0x000100;
/// The major version of this header.
pub const KVC_VERSION_MAJOR: u32 = 0;
/// The minor version of this header.
pub const KVC_VERSION_MINOR: u32 = 1;
/// The patch version of this header.
pub const KVC_VERSION_PATCH: u32 = 0;

/// Returns the version of the loaded library, in the form of KVC_VERSION.
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
