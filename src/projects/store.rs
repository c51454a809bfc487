//! The SQL of projects.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::auth::store::ROTATED_KEY_RETENTION;
use crate::db::interval;
use crate::ids::ProjectId;

/// The key in `configs` that marks the default project.
pub const DEFAULT_PROJECT_MARKER: &str = "__default_init_project__";

/// The name in `server_state` of the lookup hash of the root token that was applied last.
pub const APPLIED_ROOT_TOKEN: &str = "root_key_hmac";

/// A project key as stored in the database.
pub struct HashedKey {
    /// The key lookup hash.
    pub secret_key_hmac: String,
    /// The Argon2 hash of the key in PHC format.
    pub secret_key_hash_phc: String,
    pub is_compact: bool,
}

/// Inserts a project and returns its id.
pub async fn insert(conn: &mut PgConnection, key: &HashedKey, configs: Option<Value>) -> sqlx::Result<ProjectId> {
    sqlx::query_scalar!(
        r#"insert into projects (secret_key_hmac, secret_key_hash_phc, key_is_compact, configs) values ($1, $2, $3, $4)
           returning id as "id: ProjectId""#,
        key.secret_key_hmac,
        key.secret_key_hash_phc,
        key.is_compact,
        configs,
    )
    .fetch_one(conn)
    .await
}

/// Deletes a project and all its data, if the project exists. The sweep deletes its objects later.
pub async fn delete(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<()> {
    sqlx::query!("delete from projects where id = $1", project as _).execute(conn).await.map(drop)
}

/// The settings of a project.
pub struct Settings {
    /// The object `project_config` in the project's `configs`: the settings that were set explicitly.
    pub project_config: Map<String, Value>,
    pub encryption_enabled: bool,
}

/// Returns the settings of a project, or `None` if the project does not exist. A stored `project_config` that is not an object
/// is treated as an empty object.
pub async fn get_settings(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Settings>> {
    let row = sqlx::query!(
        r#"select case when jsonb_typeof(configs -> 'project_config') = 'object'
                       then configs -> 'project_config' end as "configs: Json<Map<String, Value>>", encryption_enabled
           from projects where id = $1"#,
        project as _
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| Settings {
        project_config: row.configs.map(|configs| configs.0).unwrap_or_default(),
        encryption_enabled: row.encryption_enabled,
    }))
}

/// Replaces a project's settings. The caller must hold the project's [`lock`].
pub async fn set_settings(
    conn: &mut PgConnection,
    project: ProjectId,
    project_config: &Map<String, Value>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects
         set configs = case when jsonb_typeof(configs) = 'object' then configs else '{}' end
                       || jsonb_build_object('project_config', $2::jsonb),
             updated_at = now()
         where id = $1",
        project as _,
        Json(project_config) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The row of the default project.
pub struct DefaultProject {
    pub id: ProjectId,
    pub may_have_encrypted_content: bool,
}

/// Locks and returns the row of the default project.
pub async fn lock_default_project(conn: &mut PgConnection) -> sqlx::Result<Option<DefaultProject>> {
    sqlx::query_as!(
        DefaultProject,
        r#"select id as "id: ProjectId",
                  encryption_enabled or master_key_check_value is not null as "may_have_encrypted_content!"
           from projects where configs @> '{"__default_init_project__": true}' order by id limit 1 for update"#,
    )
    .fetch_optional(conn)
    .await
}

/// Replaces the key of a project.
pub async fn update_key(conn: &mut PgConnection, project: ProjectId, key: &HashedKey) -> sqlx::Result<()> {
    let update = sqlx::query!(
        "update projects set secret_key_hmac = $2, secret_key_hash_phc = $3, key_is_compact = $4, updated_at = now()
         where id = $1",
        project as _,
        key.secret_key_hmac,
        key.secret_key_hash_phc,
        key.is_compact,
    );
    update.execute(conn).await.map(drop)
}

/// The row of a project that is locked.
pub struct LockedProject {
    pub secret_key_hmac: String,
    pub key_is_compact: Option<bool>,
    pub encryption_enabled: bool,
    /// The key check value of the master key with which content is, or may still be, encrypted.
    pub master_key_check_value: Option<Vec<u8>>,
}

impl LockedProject {
    /// Returns `true` if content may be encrypted, so that it would be lost without the master key.
    pub fn may_have_encrypted_content(&self) -> bool {
        self.encryption_enabled || self.master_key_check_value.is_some()
    }
}

/// Locks a project's row, so that its key and its settings do not change until the transaction ends.
pub async fn lock(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<LockedProject>> {
    sqlx::query_as!(
        LockedProject,
        "select secret_key_hmac, key_is_compact, encryption_enabled, master_key_check_value
         from projects where id = $1 for no key update",
        project as _
    )
    .fetch_optional(conn)
    .await
}

/// Records that a project's key was rotated. Replaces the record of the same key in another project, if there is one: the root
/// token of the default project may be a rotated key of another project.
pub async fn insert_rotated_key(
    conn: &mut PgConnection,
    project: ProjectId,
    secret_key_hmac: &str,
    is_compact: Option<bool>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into rotated_keys (secret_key_hmac, project_id, key_is_compact) values ($1, $2, $3)
         on conflict (secret_key_hmac) do update
             set project_id = excluded.project_id, key_is_compact = excluded.key_is_compact, rotated_at = now()",
        secret_key_hmac,
        project as _,
        is_compact
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Deletes the record of a rotated key.
pub async fn delete_rotated_key(conn: &mut PgConnection, secret_key_hmac: &str) -> sqlx::Result<()> {
    sqlx::query!("delete from rotated_keys where secret_key_hmac = $1", secret_key_hmac).execute(conn).await.map(drop)
}

/// Deletes the records of keys that were rotated more than [`ROTATED_KEY_RETENTION`] ago.
pub async fn purge_rotated_keys(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from rotated_keys where rotated_at <= now() - $1::interval",
        interval(ROTATED_KEY_RETENTION) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The values in the database against which a pepper is verified.
pub struct PepperEvidence {
    /// The stored digest of the pepper.
    pub digest: Option<String>,
    pub has_projects: bool,
    /// The lookup hashes of the default project's key and of the root token that was applied last.
    pub root_lookup_hashes: Vec<String>,
}

impl PepperEvidence {
    /// Returns `true` if the database was set up with a pepper.
    pub fn is_set_up(&self) -> bool {
        self.digest.is_some() || self.has_projects
    }
}

/// Returns the evidence, or `None` if the database has no tables yet. `digest_name` is the name of the digest in `server_state`.
pub async fn get_pepper_evidence(conn: &mut PgConnection, digest_name: &str) -> sqlx::Result<Option<PepperEvidence>> {
    let tables_exist = sqlx::query_scalar!(
        r#"select to_regclass('projects') is not null and to_regclass('server_state') is not null as "exist!""#
    );
    if !tables_exist.fetch_one(&mut *conn).await? {
        return Ok(None);
    }
    let row = sqlx::query!(
        r#"select (select value from server_state where name = $1) as digest,
                  exists (select from projects) as "has_projects!",
                  array(select secret_key_hmac::text from projects where configs @> '{"__default_init_project__": true}'
                        union all select value from server_state where name = $2) as "root_lookup_hashes!""#,
        digest_name,
        APPLIED_ROOT_TOKEN
    );
    let row = row.fetch_one(conn).await?;
    Ok(Some(PepperEvidence {
        digest: row.digest,
        has_projects: row.has_projects,
        root_lookup_hashes: row.root_lookup_hashes,
    }))
}
