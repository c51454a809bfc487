//! The context of idempotency keys.

use std::time::Duration;

use crate::db::Db;

/// The settings and resources that requests with an idempotency key need.
pub struct IdempotencyContext {
    pub(super) db: Db,
    pub(super) pepper: String,
    /// The maximum time to wait for a concurrent request with the same key.
    pub(super) wait_timeout: Duration,
}

impl IdempotencyContext {
    pub fn new(db: Db, pepper: String, wait_timeout: Duration) -> Self {
        Self { db, pepper, wait_timeout }
    }
}
