//! The migrations are embedded at compile time, and stable macros cannot tell that a file was added.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
