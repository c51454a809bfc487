//! The HTTP handler that a gateway calls before it forwards a request, to check the project's quota.

use axum::extract::State;
use serde::Deserialize;

use super::store;
use crate::error::{Error, Result};
use crate::http::extract::{Path, PathParam, Query};
use crate::http::response::{self, Empty, QueryResult};
use crate::ids::ProjectId;
use crate::platform::Platform;

/// The POST routes that are subject to the storage quota, as a gateway writes them.
const STORAGE_QUOTA_ROUTES: [&str; 2] = ["api/v1/session/:session_id/messages", "api/v1/disk/:disk_id/artifact"];

/// A project id that is not parsed yet. This route has its own error message for an invalid id, which clients match.
pub struct RawProjectId(String);

impl PathParam for RawProjectId {
    const NAME: &'static str = "project_id";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetQuotaParams {
    /// Route of the request to forward, with parameter names instead of values.
    #[serde(default)]
    #[param(required = true, example = "/api/v1/disk/:disk_id/artifact")]
    path: Option<String>,
    /// HTTP method of the request to forward.
    #[serde(default)]
    #[param(required = true, example = "POST")]
    method: Option<String>,
}

/// Check a project's quota
///
/// For a gateway: returns 403 if the request to forward would store data and the project is over its storage quota.
#[utoipa::path(get, path = "/metrics/v1/{project_id}/quota", tag = "metrics",
    params(("project_id" = ProjectId, Path), GetQuotaParams), security(("AdminToken" = [])))]
pub async fn get_quota(
    State(platform): State<Platform>,
    Path(project): Path<RawProjectId>,
    Query(query): Query<GetQuotaParams>,
) -> QueryResult<Empty> {
    let required = |name: &str, text: Option<String>| {
        text.filter(|text| !text.is_empty()).ok_or_else(|| Error::invalid_field(name, "is required"))
    };
    let (path, method) = (required("path", query.path)?, required("method", query.method)?);
    let project: ProjectId = project.0.parse().map_err(|_| Error::bad_request("invalid project id"))?;
    if is_subject_to_storage_quota(&path, &method) {
        let mut conn = platform.db.acquire().await?;
        if store::is_over_quota(&mut conn, project, store::STORAGE_QUOTA_TAG).await? {
            return Err(Error::Forbidden("quota exceeded"));
        }
    }
    Ok(response::ok_message("ok"))
}

/// Returns `true` if the request is subject to the storage quota.
fn is_subject_to_storage_quota(path: &str, method: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
    method == "POST" && STORAGE_QUOTA_ROUTES.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_that_store_data_are_subject_to_the_quota() {
        assert!(is_subject_to_storage_quota("/api/v1/disk/:disk_id/artifact", "POST"));
        assert!(is_subject_to_storage_quota("api/v1/session/:session_id/messages/?a=b#c", "POST"));
        for (path, method) in [
            ("/api/v1/disk/:disk_id/artifact", "GET"),
            ("/api/v1/disk", "POST"),
            ("/api/v1/disk/:disk_id/artifact/ls", "POST"),
        ] {
            assert!(!is_subject_to_storage_quota(path, method), "{method} {path}");
        }
    }
}
