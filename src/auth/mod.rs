//! Who is calling. [`gate`] is the middleware in front of every route, [`keys`] verifies project keys and caches the verified ones,
//! [`store`] is the SQL.

pub mod gate;
pub mod keys;
pub mod store;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::encryption::Owner;
use crate::error::{Error, Result};
use crate::ids::ProjectId;

/// The project that a request's key opened.
#[derive(Clone)]
pub struct Caller {
    pub project: ProjectId,
    /// What the key is found by.
    pub lookup: Arc<str>,
    /// The key was replaced lately: it opens nothing but the answer that told the new one.
    pub is_replaced: bool,
    /// So many messages of a session need not wait longer to be observed, if the project has set it.
    pub buffer_turns: Option<i64>,
    /// The project with what seals its content, which is inside of the key if it is a compact one.
    pub owner: Owner,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Error::internal(anyhow::anyhow!("an open route asks for a project")))
    }
}
