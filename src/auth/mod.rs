//! Authentication. [`access`] has the middleware in front of every route and its access rules, [`keys`] verifies
//! project keys, [`cache`] caches them, [`store`] has the SQL.

pub mod access;
pub mod cache;
pub mod keys;
pub mod store;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::middleware::RequestId;
use crate::ids::ProjectId;

/// The authenticated project of a request.
#[derive(Clone)]
pub struct Caller {
    pub project: ProjectId,
    /// The lookup hash of the project key.
    pub key_lookup_hash: Arc<str>,
    /// `true` if the key was rotated. It is then accepted only to replay the response that contains the new key.
    pub is_rotated: bool,
    /// The project's limit of the observation buffer, if it has one: a session is observed as soon as this many messages are
    /// pending.
    pub max_buffer_turns: Option<i64>,
    /// The id of the request.
    pub request_id: Option<RequestId>,
    /// The storage format of the project's content, and the master key if the project key is a compact key.
    pub encryption: ProjectEncryption,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::internal(anyhow::anyhow!("the handler of a public route requires a project key")))
    }
}
