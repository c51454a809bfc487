//! The migrations are embedded at compile time, and stable macros cannot tell that a file was added.

#![expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
