//! The resource limits of this process: core dumps and open descriptors.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

use crate::failure::Failure;

/// The number of descriptors that are reserved for purposes other than connections.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Keeps the cluster's key out of core dumps, and prevents debuggers of the same user from attaching.
pub(crate) fn forbid_core_dumps() -> Result<(), Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| {
        Failure::Failed(format!(
            "cannot disable core dumps: {error}; give --core-dumps to allow them"
        ))
    })
}

/// Raises the limit of open descriptors to its maximum, and returns how many are available for connections.
pub(crate) fn raise_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let usable = now.unwrap_or(u64::from(u32::MAX)).saturating_sub(RESERVED_DESCRIPTORS).max(64);
    usize::try_from(usable).unwrap_or(usize::MAX)
}
