//! placeholder
pub mod dump;
