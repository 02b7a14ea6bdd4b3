//! The C library: its build, its installation, its tests and its examples.

#[path = "../common/mod.rs"]
mod common;

mod build;
mod examples;
mod install;
mod program;
mod suite;
