//! The default mode: a private Postgres of our own beside a folder of objects.

pub mod postgres;
mod programs;
