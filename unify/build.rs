//! Does nothing: it exists because only a build script can have build dependencies.

fn main() {}
