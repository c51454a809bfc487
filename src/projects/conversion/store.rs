//! SQL of conversions.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::page::Cursor;
use crate::ids::{ProjectId, SessionId};

/// Waits until no transaction stores content of this project, and keeps others from it until this one ends.
pub async fn lock_form(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<()> {
    // As spelled in `encryption_enabled_for_share`.
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtextextended('acontextd seals ' || $1::uuid::text, 0))",
        project as _
    )
    .fetch_one(conn)
    .await
    .map(drop)
}

/// Says how content is stored from now on. Wants the form's lock.
pub async fn set_form(
    conn: &mut PgConnection,
    project: ProjectId,
    sealed: bool,
    master_key_check_value: &[u8],
) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects set encryption_enabled = $2, master_key_check_value = $3, updated_at = now()
         where id = $1 and (encryption_enabled, master_key_check_value) is distinct from ($2, $3)",
        project as _,
        sealed,
        master_key_check_value
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Nothing in the project is sealed any more.
pub async fn forget_check(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<()> {
    sqlx::query!(
        "update projects set master_key_check_value = null where id = $1 and not encryption_enabled",
        project as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// How far a conversion is.
pub struct Conversion {
    pub encrypt: bool,
    pub total: i64,
    pub converted: i64,
    pub failed: i64,
    pub error: Option<String>,
    pub has_ended: bool,
}

/// The last conversion of a project. While it waits to be tried again, the reason of that is its error.
pub async fn get(conn: &mut PgConnection, project: ProjectId) -> sqlx::Result<Option<Conversion>> {
    sqlx::query_as!(
        Conversion,
        r#"select encrypt, total, converted, failed, finished_at is not null as "has_ended!",
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
pub async fn begin(conn: &mut PgConnection, project: ProjectId, seals: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into encryption_conversions as c (project_id, encrypt, total) values ($1, $2, 0)
         on conflict (project_id) do update
             set id = gen_random_uuid(), encrypt = $2, total = 0, converted = 0, failed = 0, error = null, started_at = now(),
                 finished_at = null
             where c.encrypt <> $2 or c.finished_at is not null",
        project as _,
        seals
    )
    .execute(conn)
    .await
    .map(drop)
}

/// A try begins: what is left is counted anew, and what failed is tried again. Answers with the conversion's id.
pub async fn set_left(conn: &mut PgConnection, project: ProjectId, left: i64) -> sqlx::Result<Option<Uuid>> {
    sqlx::query_scalar!(
        "update encryption_conversions set total = converted + $2, failed = 0, error = null where project_id = $1 returning id",
        project as _,
        left
    )
    .fetch_optional(conn)
    .await
}

/// So many more are done, or could not be; the first reason is kept. Whether the conversion is still this one.
pub async fn add(
    conn: &mut PgConnection,
    conversion: Uuid,
    done: i64,
    failed: i64,
    error: Option<&str>,
) -> sqlx::Result<bool> {
    sqlx::query!(
        "update encryption_conversions set converted = converted + $2, failed = failed + $3, error = coalesce(error, $4) where id = $1",
        conversion,
        done,
        failed,
        error
    )
    .execute(conn)
    .await
    .map(|changed| changed.rows_affected() == 1)
}

/// Ends a conversion; how many could not be done. `None` if it was turned back meanwhile.
pub async fn end(conn: &mut PgConnection, conversion: Uuid) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar!(
        "update encryption_conversions set finished_at = now() where id = $1 returning failed",
        conversion
    )
    .fetch_optional(conn)
    .await
}

/// How many messages of a project are in the other form.
pub async fn count_messages(conn: &mut PgConnection, project: ProjectId, seals: bool) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from messages m join sessions s on s.id = m.session_id
           where s.project_id = $1 and (m.encrypted_as is null) = $2"#,
        project as _,
        seals
    )
    .fetch_one(conn)
    .await
}

/// Sessions of a project that have messages in the other form, in order of time after this one.
pub async fn list_sessions(
    conn: &mut PgConnection,
    project: ProjectId,
    seals: bool,
    after: Cursor,
    limit: i64,
) -> sqlx::Result<Vec<(SessionId, Cursor)>> {
    let rows = sqlx::query!(
        r#"select s.id as "id: SessionId", s.created_at from sessions s
           where s.project_id = $1 and (s.created_at, s.id) > ($3, $4)
             and exists (select 1 from messages m where m.session_id = s.id and (m.encrypted_as is null) = $2)
           order by s.created_at, s.id limit $5"#,
        project as _,
        seals,
        after.created_at,
        after.id,
        limit
    );
    let rows = rows.fetch_all(conn).await?.into_iter();
    Ok(rows.map(|row| (row.id, Cursor { created_at: row.created_at, id: row.id.0 })).collect())
}
