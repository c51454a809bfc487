//! Who is calling. [`gate`] is the middleware in front of every route, [`keys`] verifies project keys and caches the verified ones,
//! [`store`] is the SQL.

pub mod gate;
pub mod keys;
pub mod store;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// The project of a request's key.
#[derive(Clone)]
pub struct Caller {
    pub project: ProjectId,
    /// The lookup hash of the key.
    pub lookup: Arc<str>,
    /// The key was rotated: it is only accepted to return the response with the new key again.
    pub is_rotated: bool,
    /// The project's own setting of how many pending messages of a session are observed at once.
    pub buffer_turns: Option<i64>,
    /// The project with the key of its content, which is part of a compact key.
    pub encryption: ProjectEncryption,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::internal(anyhow::anyhow!("an open route asks for a project")))
    }
}
