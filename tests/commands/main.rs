//! Tests of the command lines, the scripts, the manual pages and the commands of docs/operations.md.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod cli;
mod kv_bench;
mod manual;
mod no_mutations;
mod operations;
mod scripts;
mod terminal;
mod updates;
mod words;
