//! The route that a gateway asks before it lets a request through.

use axum::extract::State;
use serde::Deserialize;

use super::store;
use crate::error::{Error, Result};
use crate::http::extract::{Path, PathParam, Query};
use crate::http::response::{self, Empty, QueryResult};
use crate::ids::ProjectId;
use crate::platform::Platform;

/// The routes that store bytes, as gateways name them. They are refused when a project has too many.
const STORING: [&str; 2] = ["api/v1/session/:session_id/messages", "api/v1/disk/:disk_id/artifact"];

/// The id as it came: clients know a text of its own for one that cannot be read.
pub struct Asked(String);

impl PathParam for Asked {
    const NAME: &'static str = "project_id";

    fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetQuota {
    /// The route of the request, with the names of its parameters.
    #[serde(default)]
    #[param(required = true, example = "/api/v1/disk/:disk_id/artifact")]
    path: Option<String>,
    /// The method of the request.
    #[serde(default)]
    #[param(required = true, example = "POST")]
    method: Option<String>,
}

/// Ask whether a request is within the project's quota
///
/// 403 if it would store bytes, and the project has too many.
#[utoipa::path(get, path = "/metrics/v1/{project_id}/quota", tag = "metrics",
    params(("project_id" = ProjectId, Path), GetQuota), security(("AdminToken" = [])))]
pub async fn get_quota(
    State(platform): State<Platform>,
    Path(project): Path<Asked>,
    Query(query): Query<GetQuota>,
) -> QueryResult<Empty> {
    let required = |name: &str, text: Option<String>| {
        text.filter(|text| !text.is_empty()).ok_or_else(|| Error::invalid_field(name, "is required"))
    };
    let (path, method) = (required("path", query.path)?, required("method", query.method)?);
    let project: ProjectId = project.0.parse().map_err(|_| Error::bad_request("invalid project id"))?;
    if stores(&path, &method) {
        let mut conn = platform.db.acquire().await?;
        if store::is_excess(&mut conn, project, store::STORAGE).await? {
            return Err(Error::Forbidden("quota exceeded"));
        }
    }
    Ok(response::message("ok"))
}

fn stores(path: &str, method: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
    method == "POST" && STORING.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stores_bytes_has_a_quota() {
        assert!(stores("/api/v1/disk/:disk_id/artifact", "POST"));
        assert!(stores("api/v1/session/:session_id/messages/?a=b#c", "POST"));
        for (path, method) in [
            ("/api/v1/disk/:disk_id/artifact", "GET"),
            ("/api/v1/disk", "POST"),
            ("/api/v1/disk/:disk_id/artifact/ls", "POST"),
        ] {
            assert!(!stores(path, method), "{method} {path}");
        }
    }
}
