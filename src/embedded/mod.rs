//! The embedded Postgres, which the server uses unless an external database is configured.

mod binaries;
pub mod postgres;
