//! SQL of the settings that observation works with.

use serde::Deserialize;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::ids::{ProjectId, SessionId};

/// A session while it is locked.
pub struct ObserveLimits {
    pub project: ProjectId,
    pub last_message_at: Option<chrono::DateTime<chrono::Utc>>,
    /// The project's own settings of the buffer.
    pub turns: Option<i64>,
    pub overflow: Option<i64>,
}

/// Locks a session; `None` if it is not there any more.
pub async fn lock(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<ObserveLimits>> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Buffer {
        // A value of another type is as if it were not there.
        project_session_message_buffer_max_turns: serde_json::Value,
        project_session_message_buffer_max_overflow: serde_json::Value,
    }
    let row = sqlx::query!(
        r#"select s.project_id as "project: ProjectId", s.last_message_at,
                  case when jsonb_typeof(p.configs -> 'project_config') = 'object'
                       then p.configs -> 'project_config' end as "buffer: Json<Buffer>"
           from sessions s join projects p on p.id = s.project_id
           where s.id = $1 for no key update of s"#,
        session as _
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| {
        let buffer = row.buffer.map(|buffer| buffer.0).unwrap_or_default();
        ObserveLimits {
            project: row.project,
            last_message_at: row.last_message_at,
            turns: buffer.project_session_message_buffer_max_turns.as_i64(),
            overflow: buffer.project_session_message_buffer_max_overflow.as_i64(),
        }
    }))
}
