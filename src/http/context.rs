//! The context that extractors and handlers need to read a request.

use std::ops::Deref;
use std::sync::Arc;

use super::idempotency::context::IdempotencyContext;
use super::memory::BodyMemory;
use super::response_memory::ResponseMemory;
use crate::blob::spool::SpoolDir;
use crate::config::Limits;

/// The limits and resources for reading requests. A clone is cheap. Router states provide this context through `FromRef`, so that
/// the extractors in `http` do not depend on a particular state.
#[derive(Clone)]
pub struct RequestContext(Arc<RequestContextInner>);

/// The fields of a [`RequestContext`].
pub struct RequestContextInner {
    pub limits: Limits,
    pub spool: SpoolDir,
    pub body_memory: BodyMemory,
    pub response_memory: ResponseMemory,
    pub idempotency: IdempotencyContext,
}

impl RequestContext {
    pub fn new(limits: Limits, spool: SpoolDir, idempotency: IdempotencyContext) -> Self {
        let (body_memory, response_memory) = (BodyMemory::default(), ResponseMemory::new(limits.response_memory));
        Self(Arc::new(RequestContextInner { limits, spool, body_memory, response_memory, idempotency }))
    }
}

impl Deref for RequestContext {
    type Target = RequestContextInner;

    fn deref(&self) -> &RequestContextInner {
        &self.0
    }
}
