//! The operator's routes for projects.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::keys::{self, Made};
use super::store;
use crate::error::Error;
use crate::http::extract::{Json, Path, RequestBody};
use crate::http::idempotency::Idempotency;
use crate::http::json::validate_storable;
use crate::http::response::{self, CommandResult, Data, Empty};
use crate::ids::ProjectId;
use crate::projects::Projects;

/// Marks the default project; not for anyone else's `configs`.
const ROOT_MARK: &str = "__default_init_project__";

#[derive(Deserialize, utoipa::ToSchema)]
pub struct CreateProject {
    /// Settings of the project, as they are kept.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    configs: Option<Map<String, Value>>,
}

impl RequestBody for CreateProject {
    const IS_FREE_FORM: bool = true;
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct CreatedProject {
    project_id: ProjectId,
    /// The project's only key. It is shown here, and to a request that comes again with its `Idempotency-Key`; only that
    /// opens what is kept for it.
    #[schema(example = "sk-ac-AQAB…")]
    secret_key: String,
}

/// Create a project
///
/// Answers with the project's key, which cannot be shown again.
#[utoipa::path(post, path = "/admin/v1/project", tag = "admin", request_body = CreateProject,
    security(("AdminToken" = [])))]
pub async fn create_project(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Json(body): Json<CreateProject>,
) -> CommandResult<Data<CreatedProject>> {
    if let Some(configs) = &body.configs {
        validate_storable("configs", configs, ctx.config.limits.meta)?;
        if configs.contains_key(ROOT_MARK) {
            return Err(Error::invalid_field("configs", format_args!("must not contain {ROOT_MARK}")).into());
        }
    }
    idempotency.replay_if_completed().await?;
    let Made { new, secret_key } = keys::make(&ctx, None).await?;
    let mut tx = idempotency.begin().await?;
    let project_id = store::insert(&mut tx, &new, body.configs.map(Value::Object)).await?;
    tx.commit(response::ok(CreatedProject { project_id, secret_key })).await
}

/// Delete a project
///
/// With everything that belongs to it. Its key is refused from then on; a project that does not exist is fine.
#[utoipa::path(delete, path = "/admin/v1/project/{project_id}", tag = "admin",
    params(("project_id" = ProjectId, Path)), security(("AdminToken" = [])))]
pub async fn delete_project(
    State(ctx): State<Projects>,
    idempotency: Idempotency,
    Path(project): Path<ProjectId>,
) -> CommandResult<Empty> {
    let mut tx = idempotency.begin().await?;
    store::delete(&mut tx, project).await?;
    let answer = tx.commit(response::message("project deleted")).await?;
    ctx.authenticator.invalidate_project(project);
    Ok(answer)
}
