//! The smallest program in which a rule can be left out; a test looks for the marker in it, so that not
//! finding the marker elsewhere means something.

use kv_core::holes::{self, Hole};

fn main() {
    holes::open(Hole::ReadWithoutLease);
    holes::close();
}
