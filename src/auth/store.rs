//! SQL that finds projects by their keys.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;

use crate::db::interval;
use crate::encryption::StorageFormat;
use crate::ids::ProjectId;

/// How long a rotated key can be used to replay the response that contains the new key.
pub const ROTATED_KEY_RETENTION: Duration = Duration::from_hours(24);

/// The columns of a project that authentication reads.
pub struct ProjectAuth {
    pub id: ProjectId,
    pub secret_key_hash_phc: String,
    pub format: StorageFormat,
    /// The key check value of the project's master key, if the project has encrypted content.
    pub master_key_check_value: Option<Vec<u8>>,
    /// The project's limit of the observation buffer, if it has one.
    pub max_buffer_turns: Option<Value>,
}

/// Returns the project whose key has this lookup hash.
pub async fn get_by_lookup_hash(conn: &mut PgConnection, lookup_hash: &str) -> sqlx::Result<Option<ProjectAuth>> {
    sqlx::query_as!(
        ProjectAuth,
        r#"select id as "id: ProjectId", secret_key_hash_phc, encryption_enabled as "format: StorageFormat",
                  master_key_check_value,
                  configs #> '{project_config,project_session_message_buffer_max_turns}' as max_buffer_turns
           from projects where secret_key_hmac = $1"#,
        lookup_hash,
    )
    .fetch_optional(conn)
    .await
}

/// Returns the project whose rotated key has this lookup hash, with the storage format of its content.
pub async fn get_by_rotated_key(
    conn: &mut PgConnection,
    lookup_hash: &str,
) -> sqlx::Result<Option<(ProjectId, StorageFormat)>> {
    let query = sqlx::query!(
        r#"select p.id as "id: ProjectId", p.encryption_enabled as "format: StorageFormat"
           from rotated_keys r join projects p on p.id = r.project_id
           where r.secret_key_hmac = $1 and r.rotated_at > now() - $2::interval"#,
        lookup_hash,
        interval(ROTATED_KEY_RETENTION) as _
    );
    Ok(query.fetch_optional(conn).await?.map(|row| (row.id, row.format)))
}
