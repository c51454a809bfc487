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
    /// `true` if the key is a compact key, `None` if that is not known.
    pub key_is_compact: Option<bool>,
}

/// A rotated key, with which the response of its key rotation can be replayed.
pub struct RotatedKey {
    pub project: ProjectId,
    /// The storage format of the project's content.
    pub format: StorageFormat,
    /// `true` if the key is a compact key, `None` if that is not known.
    pub is_compact: Option<bool>,
}

/// Returns the project whose key has this lookup hash.
pub async fn get_by_lookup_hash(conn: &mut PgConnection, lookup_hash: &str) -> sqlx::Result<Option<ProjectAuth>> {
    sqlx::query_as!(
        ProjectAuth,
        r#"select id as "id: ProjectId", secret_key_hash_phc, encryption_enabled as "format: StorageFormat",
                  master_key_check_value,
                  configs #> '{project_config,project_session_message_buffer_max_turns}' as max_buffer_turns,
                  key_is_compact
           from projects where secret_key_hmac = $1"#,
        lookup_hash,
    )
    .fetch_optional(conn)
    .await
}

/// Returns the rotated key with this lookup hash.
pub async fn get_rotated_key(conn: &mut PgConnection, lookup_hash: &str) -> sqlx::Result<Option<RotatedKey>> {
    sqlx::query_as!(
        RotatedKey,
        r#"select p.id as "project: ProjectId", p.encryption_enabled as "format: StorageFormat", r.key_is_compact as is_compact
           from rotated_keys r join projects p on p.id = r.project_id
           where r.secret_key_hmac = $1 and r.rotated_at > now() - $2::interval"#,
        lookup_hash,
        interval(ROTATED_KEY_RETENTION) as _
    )
    .fetch_optional(conn)
    .await
}
