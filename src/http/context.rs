//! What extractors and handlers need to read a request.

use std::ops::Deref;
use std::sync::Arc;

use super::idempotency::settings::IdempotencySettings;
use super::memory::BodyMemory;
use crate::blob::spool::SpoolDir;
use crate::config::Limits;

/// A handle to what every route needs to read a request; cheap to clone. The state of a router contains one, so that the extractors
/// of this folder do not depend on that state.
#[derive(Clone)]
pub struct RequestContext(Arc<Inner>);

pub struct Inner {
    pub limits: Limits,
    pub spool: SpoolDir,
    pub body_memory: BodyMemory,
    pub idempotency: IdempotencySettings,
}

impl RequestContext {
    pub fn new(limits: Limits, spool: SpoolDir, idempotency: IdempotencySettings) -> Self {
        Self(Arc::new(Inner { limits, spool, body_memory: BodyMemory::default(), idempotency }))
    }
}

impl Deref for RequestContext {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
