//! SQL of conversions.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::encryption::StorageFormat;
use crate::ids::ProjectId;

/// Sets how content is stored from now on. The caller holds the [exclusive lock](StorageFormat::lock_exclusively).
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

/// Records that nothing in the project is encrypted any more.
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
    pub format: StorageFormat,
    pub total: i64,
    pub converted: i64,
    pub failed: i64,
    pub error: Option<String>,
    pub is_finished: bool,
}

/// The last conversion of a project. While it waits to be tried again, the reason of that is its error.
pub async fn get(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Conversion>> {
    sqlx::query_as!(
        Conversion,
        r#"select encrypt as "format: StorageFormat", total, converted, failed, finished_at is not null as "is_finished!",
                  coalesce(error, (select j.last_error from jobs j
                                   where c.finished_at is null and j.project_id = $1 and j.kind = 'convert'
                                     and j.state = 'ready' and j.wait_reason is distinct from 'time_slice' limit 1)) as error
           from encryption_conversions c where project_id = $1"#,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// Begins a conversion, or goes on with one of the same direction.
pub async fn begin(conn: &mut PgConnection, project: ProjectId, format: StorageFormat) -> sqlx::Result<()> {
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

/// Begins an attempt: what remains was counted anew, and what failed is tried again. Returns the id of the conversion.
pub async fn set_remaining(conn: &mut PgConnection, project: ProjectId, remaining: i64) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "update encryption_conversions set total = converted + $2, failed = 0, error = null where project_id = $1 returning id",
        project as _,
        remaining
    )
    .fetch_optional(conn)
    .await
}

/// Adds to the progress; the first error is kept. Returns `false` if another conversion has replaced this one.
pub async fn add_progress(
    conn: &mut PgConnection,
    conversion: Uuid,
    converted: i64,
    failed: i64,
    error: Option<&str>,
) -> sqlx::Result<bool> {
    sqlx::query!(
        "update encryption_conversions set converted = converted + $2, failed = failed + $3, error = coalesce(error, $4) where id = $1",
        conversion,
        converted,
        failed,
        error
    )
    .execute(conn)
    .await
    .map(|changed| changed.rows_affected() == 1)
}

/// Finishes a conversion, and returns how many items could not be converted. `None` if another conversion has replaced this one.
pub async fn finish(conn: &mut PgConnection, conversion: Uuid) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "update encryption_conversions set finished_at = now() where id = $1 returning failed",
        conversion
    )
    .fetch_optional(conn)
    .await
}
