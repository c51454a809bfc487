//! The settings of a project that the jobs of learning work with.

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::ids::ProjectId;

/// The limits of one observation.
#[derive(Debug, Default)]
pub struct ObserveLimits {
    /// How many pending messages are observed at once; `None` for the default of the server.
    pub turns: Option<i64>,
    /// How many more may come with them; `None` for the default of the server.
    pub overflow: Option<i64>,
}

/// Loads the limits that a project has set for itself.
///
/// # Errors
/// The database fails.
pub async fn load_observe_limits(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<ObserveLimits> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Buffer {
        // A value of another type counts as missing.
        project_session_message_buffer_max_turns: Value,
        project_session_message_buffer_max_overflow: Value,
    }
    let buffer = sqlx::query_scalar!(
        r#"select case when jsonb_typeof(configs -> 'project_config') = 'object'
                       then configs -> 'project_config' end as "buffer: Json<Buffer>"
           from projects where id = $1"#,
        project as _
    );
    let buffer = buffer.fetch_optional(conn).await?.flatten().map(|buffer| buffer.0).unwrap_or_default();
    Ok(ObserveLimits {
        turns: buffer.project_session_message_buffer_max_turns.as_i64(),
        overflow: buffer.project_session_message_buffer_max_overflow.as_i64(),
    })
}
