//! SQL that finds projects by their keys.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;

use crate::db::interval;
use crate::encryption::StorageFormat;
use crate::ids::ProjectId;

/// How long the response with a new key can be requested again with the old one.
pub const ROTATED_KEY_RETENTION: Duration = Duration::from_hours(24);

/// The project of a key.
pub struct ProjectAuth {
    pub id: ProjectId,
    pub secret_key_hash_phc: String,
    pub format: StorageFormat,
    /// Of the master key that content is sealed with.
    pub master_key_check_value: Option<Vec<u8>>,
    /// The project's own setting of how many pending messages of a session are observed at once.
    pub buffer_turns: Option<Value>,
}

/// Finds a project by the lookup hash of its key. The only query without a project id: it is how the project becomes known.
pub async fn get_by_key_hmac(conn: &mut PgConnection, secret_key_hmac: &str) -> sqlx::Result<Option<ProjectAuth>> {
    sqlx::query_as!(
        ProjectAuth,
        r#"select id as "id: ProjectId", secret_key_hash_phc, encryption_enabled as "format: StorageFormat", master_key_check_value,
                  configs #> '{project_config,project_session_message_buffer_max_turns}' as buffer_turns
           from projects where secret_key_hmac = $1"#,
        secret_key_hmac,
    )
    .fetch_optional(conn)
    .await
}

/// Finds the project whose key this was until it was rotated, and how its content is stored.
pub async fn get_by_rotated_key(
    conn: &mut PgConnection,
    secret_key_hmac: &str,
) -> sqlx::Result<Option<(ProjectId, StorageFormat)>> {
    let row = sqlx::query!(
        r#"select p.id as "id: ProjectId", p.encryption_enabled as "format: StorageFormat"
           from rotated_keys r join projects p on p.id = r.project_id
           where r.secret_key_hmac = $1 and r.rotated_at > now() - $2::interval"#,
        secret_key_hmac,
        interval(ROTATED_KEY_RETENTION) as _
    );
    Ok(row.fetch_optional(conn).await?.map(|row| (row.id, row.format)))
}
