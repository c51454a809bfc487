//! The SQL of conversions.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::encryption::StorageFormat;
use crate::ids::ProjectId;

/// Sets the storage format of new content. The caller must hold the [exclusive lock](StorageFormat::lock_exclusively).
pub async fn set_format(
    conn: &mut PgConnection,
    project: ProjectId,
    format: StorageFormat,
    master_key_check_value: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects set encryption_enabled = $2, master_key_check_value = $3, updated_at = now()
         where id = $1 and (encryption_enabled, master_key_check_value) is distinct from ($2, $3)",
        project as _,
        format as _,
        master_key_check_value
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Records that the project no longer has encrypted content.
pub async fn clear_key_check_value(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects set master_key_check_value = null where id = $1 and not encryption_enabled",
        project as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// The progress of a conversion.
pub struct Conversion {
    /// The format to which content is converted.
    pub format: StorageFormat,
    pub total: i64,
    pub converted: i64,
    /// The number of items that could not be converted.
    pub failed: i64,
    /// The first error of the failed items. If there is none, the reason why the job waits for its next attempt.
    pub error: Option<String>,
    pub is_finished: bool,
}

/// Returns the most recent conversion of a project.
pub async fn get(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Conversion>> {
    sqlx::query_as!(
        Conversion,
        r#"select encrypt as "format: StorageFormat", total, converted, failed, finished_at is not null as "is_finished!",
                  coalesce(error, (select j.last_error from jobs j
                                   where c.finished_at is null and j.project_id = $1 and j.kind = 'convert'
                                     and j.state = 'ready' limit 1)) as error
           from encryption_conversions c where project_id = $1"#,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Begins a conversion, unless one to the same format is in progress.
pub async fn begin_conversion(conn: &mut PgConnection, project: ProjectId, format: StorageFormat) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into encryption_conversions as c (project_id, encrypt, total) values ($1, $2, 0)
         on conflict (project_id) do update
             set id = gen_random_uuid(), encrypt = $2, total = 0, converted = 0, failed = 0, error = null, started_at = now(),
                 finished_at = null
             where c.encrypt <> $2 or c.finished_at is not null",
        project as _,
        format as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Begins an attempt: sets the total to the number of converted and remaining items, and the number of failed items to 0,
/// because the attempt retries them. Returns the id of the conversion, or `None` if the project has no conversion.
pub async fn begin_attempt(conn: &mut PgConnection, project: ProjectId, remaining: i64) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "update encryption_conversions set total = converted + $2, failed = 0, error = null where project_id = $1 returning id",
        project as _,
        remaining
    )
    .fetch_optional(conn)
    .await
}

/// Adds to the numbers of converted and failed items. Stores only the first error. Returns `false` if another conversion has
/// replaced this one.
pub async fn add_progress(
    conn: &mut PgConnection,
    conversion_id: Uuid,
    converted: i64,
    failed: i64,
    error: Option<&str>,
) -> sqlx::Result<bool> {
    sqlx::query!(
        "update encryption_conversions set converted = converted + $2, failed = failed + $3, error = coalesce(error, $4) where id = $1",
        conversion_id,
        converted,
        failed,
        error
    )
    .execute(conn)
    .await
    .map(|updated| updated.rows_affected() == 1)
}

/// Finishes a conversion. Returns the number of items that could not be converted, or `None` if another conversion has
/// replaced this one.
pub async fn finish(conn: &mut PgConnection, conversion_id: Uuid) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "update encryption_conversions set finished_at = now() where id = $1 returning failed",
        conversion_id
    )
    .fetch_optional(conn)
    .await
}
