//! The embedded Postgres, which the server uses unless an external database is configured.

mod binaries;
mod orphan;
pub mod postgres;
