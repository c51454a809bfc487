//! Rebuilds the crate when a migration is added. The migrations are embedded by a macro, which cannot track new files.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
