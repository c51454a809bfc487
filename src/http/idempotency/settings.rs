//! What the handling of `Idempotency-Key` needs of the server.

use std::time::Duration;

use crate::db::Db;

/// What the handling of keys needs of the server.
pub struct IdempotencySettings {
    pub(super) db: Db,
    pub(super) pepper: String,
    /// How long to wait for a concurrent request with the same key.
    pub(super) wait: Duration,
}

impl IdempotencySettings {
    pub fn new(db: Db, pepper: String, wait: Duration) -> Self {
        Self { db, pepper, wait }
    }
}
