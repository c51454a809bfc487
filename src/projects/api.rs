//! The operator's routes that create and delete projects.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::keys::{self, GeneratedKey};
use super::store::{self, DEFAULT_PROJECT_MARKER};
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json_fields::validate_storable;
use crate::http::response::{self, CommandResult, Data, Empty};
use crate::ids::ProjectId;
use crate::projects::Projects;

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateProjectRequest {
    /// Metadata of the project, stored unchanged. Its key `project_config` contains the project's settings.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
}

impl RequestBody for CreateProjectRequest {
    const HAS_FREE_FORM_OBJECT: bool = true;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct CreateProjectResponse {
    project_id: ProjectId,
    /// The project's API key. It cannot be retrieved later, except by the same request with the same `Idempotency-Key`.
    #[schema(example = "sk-ac-AQAB…")]
    secret_key: String,
}

/// Create a project
///
/// Returns the project's API key. Store it: it cannot be retrieved later.
#[utoipa::path(post, path = "/admin/v1/project", tag = "admin", request_body = CreateProjectRequest,
    security(("AdminToken" = [])))]
pub async fn create_project(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Json(body): Json<CreateProjectRequest>,
) -> CommandResult<Data<CreateProjectResponse>> {
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, ctx.config.limits.max_meta_bytes)?;
        if configs.contains_key(DEFAULT_PROJECT_MARKER) {
            return Err(
                Error::invalid_field("configs", format_args!("must not contain {DEFAULT_PROJECT_MARKER}")).into()
            );
        }
    }
    idempotency.replay_if_completed().await?;
    let GeneratedKey { hashed, secret_key } = keys::generate_key(&ctx, None).await?;
    let mut tx = idempotency.begin().await?;
    let project_id = store::insert(&mut tx, &hashed, body.configs.map(Value::Object)).await?;
    tx.commit(response::ok(CreateProjectResponse { project_id, secret_key })).await
}

/// Delete a project
///
/// Deletes the project and all its data. Its key stops working immediately. Succeeds if the project does not exist.
#[utoipa::path(delete, path = "/admin/v1/project/{project_id}", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn delete_project(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Path(project): Path<ProjectId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::delete(&mut tx, project).await?;
    let response = tx.commit(response::ok_message("project deleted")).await?;
    ctx.authenticator.invalidate_project(project);
    Ok(response)
}
