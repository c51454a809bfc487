//! Users: the people an agent works for. They come into being when a request first names one.
//!
//! [`api`] has their routes, [`store`] the SQL.

pub mod api;
pub mod store;

use serde::{Deserialize, Deserializer, Serialize};
use sqlx::PgConnection;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::page::impl_paged;
use crate::error::{Error, MapConstraint, UNAUTHORIZED};
use crate::http::extract::PathParam;
use crate::ids::{ProjectId, UserId};
use crate::platform::Platform;
use crate::time::Timestamp;

pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(api::list_users, api::delete_user_ls))
        .routes(routes!(api::delete_user))
        .routes(routes!(api::get_user_resources))
}

/// The number of entities that belong to a user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ResourceCounts {
    pub sessions_count: i64,
    /// Includes the disks of skills.
    pub disks_count: i64,
    pub skills_count: i64,
}

/// A user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct User {
    pub id: UserId,
    pub project_id: ProjectId,
    /// How the project names the user.
    pub identifier: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(User);

const NUL: &str = "must not contain the character NUL";

/// How a project names a user: any text without NUL, up to 1 024 bytes, compared exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    const MAX_BYTES: usize = 1024;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Identifier {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.len() > Self::MAX_BYTES {
            return Err("must not be longer than 1024 bytes");
        }
        if text.contains('\0') {
            return Err(NUL);
        }
        Ok(Self(text))
    }
}

impl PathParam for Identifier {
    const NAME: &'static str = "identifier";

    fn read(text: &str) -> Result<Self, &'static str> {
        Self::try_from(text.to_owned())
    }
}

/// Reads the user that a list is narrowed to; an empty one narrows nothing.
///
/// # Errors
/// 400 that names the field, for a name that no user can have.
pub fn filter(user: Option<&str>) -> Result<Option<&str>, Error> {
    let user = user.filter(|user| !user.is_empty());
    if user.is_some_and(|user| user.contains('\0')) {
        return Err(Error::invalid_field("user", NUL));
    }
    Ok(user)
}

/// The user that a request names, made now if there is none.
///
/// # Errors
/// 401 if the project is deleted just now.
pub async fn named(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<&Identifier>,
) -> Result<Option<UserId>, Error> {
    let Some(user) = user else { return Ok(None) };
    let found = store::get_or_insert(conn, project, user).await;
    found.map_constraint_err("users_project_id_fkey", || UNAUTHORIZED).map(Some)
}

/// Reads an optional user: absent, null and empty all mean none.
pub fn optional<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Identifier>, D::Error> {
    match Option::<String>::deserialize(input)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => Identifier::try_from(text).map(Some).map_err(serde::de::Error::custom),
    }
}
