//! Users: the people for whom an agent works. A user is created when a request first refers to it.
//!
//! [`api`] contains the routes and [`store`] the SQL.

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

/// The number of resources that belong to a user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ResourceCounts {
    /// Number of sessions.
    pub sessions_count: i64,
    /// Number of disks, including the disks of skills.
    pub disks_count: i64,
    /// Number of skills.
    pub skills_count: i64,
}

/// A user.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct User {
    pub id: UserId,
    pub project_id: ProjectId,
    /// The project-defined identifier of the user.
    pub identifier: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl_paged!(User);

const NUL_NOT_ALLOWED: &str = "must not contain the character NUL";

/// The project-defined identifier of a user: 1 to 1 024 bytes of text without NUL characters, compared exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserIdentifier(String);

impl UserIdentifier {
    const MAX_BYTES: usize = 1024;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserIdentifier {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.len() > Self::MAX_BYTES {
            return Err("must not be longer than 1024 bytes");
        }
        if text.contains('\0') {
            return Err(NUL_NOT_ALLOWED);
        }
        Ok(Self(text))
    }
}

impl PathParam for UserIdentifier {
    const NAME: &'static str = "identifier";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Self::try_from(text.to_owned())
    }
}

/// Validates the user identifier by which a list is filtered. Returns `None` if the identifier is absent or empty.
///
/// # Errors
/// 400 if the text contains NUL characters, which no identifier can contain.
pub fn validate_filter(user: Option<&str>) -> Result<Option<&str>, Error> {
    let user = user.filter(|user| !user.is_empty());
    if user.is_some_and(|user| user.contains('\0')) {
        return Err(Error::invalid_field("user", NUL_NOT_ALLOWED));
    }
    Ok(user)
}

/// Returns the id of the user that a request refers to, and creates the user if it does not exist. Returns `None` if the
/// request refers to no user.
///
/// # Errors
/// 401 if the project is deleted concurrently.
pub async fn resolve_or_create(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<&UserIdentifier>,
) -> Result<Option<UserId>, Error> {
    let Some(user) = user else { return Ok(None) };
    let id = store::get_or_insert(conn, project, user).await;
    id.map_constraint_err("users_project_id_fkey", || UNAUTHORIZED).map(Some)
}

/// Deserializes an optional user identifier. Returns `None` for `null` and for an empty string.
pub fn deserialize_optional<'de, D: Deserializer<'de>>(input: D) -> Result<Option<UserIdentifier>, D::Error> {
    match Option::<String>::deserialize(input)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => UserIdentifier::try_from(text).map(Some).map_err(serde::de::Error::custom),
    }
}
