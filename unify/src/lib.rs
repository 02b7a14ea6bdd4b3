//! The features that the whole workspace enables in its dependencies.
//!
//! Cargo builds a dependency with the features that the selected packages enable. Without this package, `cargo test -p
//! kv-core` would enable fewer features than `make test`, and compile a third of the dependencies once more. Every
//! package of the workspace has this one as a dev-dependency, so tests always use the same builds. Shipped programs do
//! not depend on it.
