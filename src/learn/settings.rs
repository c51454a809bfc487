//! The project's settings for observation.

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::ids::ProjectId;

/// The limits of a project for a batch of observed messages. A batch contains up to `max_turns + max_overflow` messages. `None`
/// stands for the server's default.
#[derive(Debug, Default)]
pub struct BatchLimits {
    /// Number of pending messages at which a session is observed immediately.
    pub max_turns: Option<i64>,
    /// Maximum number of additional messages in the batch.
    pub max_overflow: Option<i64>,
}

/// Loads the batch limits from the `configs` of a project.
///
/// # Errors
/// Returns an error if the database fails.
pub async fn load_batch_limits(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<BatchLimits> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct ProjectConfig {
        // A value of another type counts as missing.
        project_session_message_buffer_max_turns: Value,
        project_session_message_buffer_max_overflow: Value,
    }
    let config = sqlx::query_scalar!(
        r#"select case when jsonb_typeof(configs -> 'project_config') = 'object'
                       then configs -> 'project_config' end as "config: Json<ProjectConfig>"
           from projects where id = $1"#,
        project as _
    );
    let config = config.fetch_optional(conn).await?.flatten().map(|config| config.0).unwrap_or_default();
    Ok(BatchLimits {
        max_turns: config.project_session_message_buffer_max_turns.as_i64(),
        max_overflow: config.project_session_message_buffer_max_overflow.as_i64(),
    })
}
