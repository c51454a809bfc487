//! SQL of projects.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::auth::store::ROTATED_KEY_RETENTION;
use crate::db::interval;
use crate::ids::ProjectId;

/// A key as the database keeps it.
pub struct NewKey {
    pub secret_key_hmac: String,
    pub secret_key_hash_phc: String,
}

pub async fn insert(conn: &mut PgConnection, key: &NewKey, configs: Option<Value>) -> sqlx::Result<ProjectId> {
    sqlx::query_scalar!(
        r#"insert into projects (secret_key_hmac, secret_key_hash_phc, configs) values ($1, $2, $3) returning id as "id: ProjectId""#,
        key.secret_key_hmac,
        key.secret_key_hash_phc,
        configs,
    )
    .fetch_one(conn)
    .await
}

/// Deletes a project with everything that belongs to it; its stored objects are released to the sweep.
pub async fn delete(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<bool> {
    let gone = sqlx::query!("delete from projects where id = $1", project as _).execute(conn).await?;
    Ok(gone.rows_affected() == 1)
}

/// What a project has set for itself, and whether it is encrypted.
pub struct Settings {
    pub configs: Map<String, Value>,
    pub encryption_enabled: bool,
}

/// A project's settings. What is there but no object counts as none.
pub async fn get_settings(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Settings>> {
    let row = sqlx::query!(
        r#"select case when jsonb_typeof(configs -> 'project_config') = 'object'
                       then configs -> 'project_config' end as "configs: Json<Map<String, Value>>", encryption_enabled
           from projects where id = $1"#,
        project as _
    );
    let row = row.fetch_optional(conn).await?;
    Ok(row.map(|row| Settings {
        configs: row.configs.map(|configs| configs.0).unwrap_or_default(),
        encryption_enabled: row.encryption_enabled,
    }))
}

/// Wants the project's lock.
pub async fn set_settings(
    conn: &mut PgConnection,
    project: ProjectId,
    configs: &Map<String, Value>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects
         set configs = case when jsonb_typeof(configs) = 'object' then configs else '{}' end
                       || jsonb_build_object('project_config', $2::jsonb),
             updated_at = now()
         where id = $1",
        project as _,
        Json(configs) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The default project, and whether something in it may be sealed; locked.
pub async fn lock_root(conn: &mut PgConnection) -> sqlx::Result<Option<(ProjectId, bool)>> {
    let row = sqlx::query!(
        r#"select id as "id: ProjectId", encryption_enabled or master_key_check_value is not null as "is_sealed!" from projects
           where configs @> '{"__default_init_project__": true}' order by id limit 1 for update"#,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| (row.id, row.is_sealed)))
}

pub async fn update_key(conn: &mut PgConnection, project: ProjectId, key: &NewKey) -> sqlx::Result<bool> {
    let changed = sqlx::query!(
        "update projects set secret_key_hmac = $2, secret_key_hash_phc = $3, updated_at = now() where id = $1",
        project as _,
        key.secret_key_hmac,
        key.secret_key_hash_phc,
    );
    Ok(changed.execute(conn).await?.rows_affected() == 1)
}

/// A project's row while it is locked.
pub struct Locked {
    pub secret_key_hmac: String,
    pub encryption_enabled: bool,
    /// Of the master key that content is, or may still be, sealed with.
    pub master_key_check_value: Option<Vec<u8>>,
}

impl Locked {
    /// Whether something may be sealed, so that without the master key it would be lost.
    pub fn is_sealed(&self) -> bool {
        self.encryption_enabled || self.master_key_check_value.is_some()
    }
}

/// Locks a project's row, so that its key and its settings stay as they are.
pub async fn lock(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Locked>> {
    sqlx::query_as!(
        Locked,
        "select secret_key_hmac, encryption_enabled, master_key_check_value from projects where id = $1 for no key update",
        project as _
    )
    .fetch_optional(conn)
    .await
}

/// Records that a project's key was rotated. The key may have been rotated before and set again by a start with that root token.
pub async fn insert_replaced(conn: &mut PgConnection, project: ProjectId, secret_key_hmac: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into rotated_keys (secret_key_hmac, project_id) values ($1, $2)
         on conflict (secret_key_hmac) do update set project_id = excluded.project_id, rotated_at = now()",
        secret_key_hmac,
        project as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Removes the record of one rotated key.
pub async fn delete_replaced_key(conn: &mut PgConnection, secret_key_hmac: &str) -> sqlx::Result<()> {
    sqlx::query!("delete from rotated_keys where secret_key_hmac = $1", secret_key_hmac).execute(conn).await.map(drop)
}

/// Deletes the records of keys that were rotated long ago.
pub async fn delete_replaced(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from rotated_keys where rotated_at <= now() - $1::interval",
        interval(ROTATED_KEY_RETENTION) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// What a database tells about the pepper that it was set up with.
pub struct PepperEvidence {
    /// The recorded digest of the pepper.
    pub digest: Option<String>,
    pub has_projects: bool,
    /// Lookup hashes of the default project's key and of the root token that was applied last.
    pub root_lookups: Vec<String>,
}

impl PepperEvidence {
    /// Returns `true` if anything in the database depends on a pepper.
    pub fn is_set_up(&self) -> bool {
        self.digest.is_some() || self.has_projects
    }
}

/// Returns `None` if the database has no tables yet.
pub async fn get_pepper_evidence(conn: &mut PgConnection, digest: &str) -> sqlx::Result<Option<PepperEvidence>> {
    let tables = sqlx::query_scalar!(
        r#"select to_regclass('projects') is not null and to_regclass('server_state') is not null as "exist!""#
    );
    if !tables.fetch_one(&mut *conn).await? {
        return Ok(None);
    }
    let row = sqlx::query!(
        r#"select (select value from server_state where name = $1) as digest,
                  exists (select from projects) as "has_projects!",
                  array(select secret_key_hmac::text from projects where configs @> '{"__default_init_project__": true}'
                        union all select value from server_state where name = $2) as "root_lookups!""#,
        digest,
        ROOT_TOKEN
    );
    let row = row.fetch_one(conn).await?;
    Ok(Some(PepperEvidence { digest: row.digest, has_projects: row.has_projects, root_lookups: row.root_lookups }))
}

/// The name in `server_state` of the lookup hash of the root token that was applied last.
pub const ROOT_TOKEN: &str = "root_key_hmac";
