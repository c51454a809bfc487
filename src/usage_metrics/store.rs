//! SQL of metrics.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Metric;
use crate::ids::ProjectId;
use crate::time::Timestamp;

/// The flag of a project that stores too much.
pub const STORAGE: &str = "excess.storage.usage";
/// The flag of a project that has too many tasks.
pub const TASKS: &str = "excess.task.created";

/// Whether a flag is up: the newest word counts.
pub async fn is_excess(conn: &mut PgConnection, project: ProjectId, flag: &str) -> sqlx::Result<bool> {
    let newest = sqlx::query_scalar!(
        "select increment from metrics where project_id = $1 and tag = $2 order by created_at desc limit 1",
        project as _,
        flag
    );
    Ok(newest.fetch_optional(conn).await?.is_some_and(|increment| increment != 0))
}

/// Puts a flag up or down. Flags are as old as can be, so that they are never told to whoever sets them. A project that is not
/// there has none.
pub async fn set_excess(conn: &mut PgConnection, project: ProjectId, flag: &str, is_up: bool) -> sqlx::Result<()> {
    sqlx::query!("delete from metrics where project_id = $1 and tag = $2", project as _, flag)
        .execute(&mut *conn)
        .await?;
    if is_up {
        sqlx::query!(
            "insert into metrics (project_id, tag, increment, created_at, updated_at)
             select id, $2, 1, 'epoch', 'epoch' from projects where id = $1",
            project as _,
            flag
        )
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Takes the lock of the one push that may be under way; it stays with the connection.
pub async fn try_lock_push(conn: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select pg_try_advisory_lock(hashtext('acontextd push metrics')) as "taken!""#)
        .fetch_one(conn)
        .await
}

/// The database's clock, by which rows are dated.
pub async fn now(conn: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(conn).await
}

/// Brings the rows that tell how much each project stores up to date; one that is right is not touched. Wants the lock of the
/// push.
pub async fn measure_storage(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "with stored as (
             select p.id, coalesce(sum(b.size), 0)::bigint as bytes
             from projects p left join blobs b on b.project_id = p.id and b.state = 'live' group by p.id
         ),
         moved as (
             update metrics m set increment = s.bytes, updated_at = now()
             from stored s where m.project_id = s.id and m.tag = 'storage.usage' and m.increment <> s.bytes
         )
         insert into metrics (project_id, tag, increment)
         select s.id, 'storage.usage', s.bytes from stored s
         where s.bytes > 0
           and not exists (select 1 from metrics m where m.project_id = s.id and m.tag = 'storage.usage')"
    )
    .execute(conn)
    .await
    .map(drop)
}

/// What has changed in a span of time, and what each project that has changed stores now.
pub async fn list_changed(
    conn: &mut PgConnection,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> sqlx::Result<Vec<Metric>> {
    sqlx::query_as!(
        Metric,
        r#"select id, project_id as "project_id: ProjectId", tag, increment, created_at as "created_at: Timestamp",
                  updated_at as "updated_at: Timestamp"
           from metrics
           where updated_at >= $1 and (updated_at < $2 or tag = 'storage.usage') and tag not like 'excess.%'
           order by updated_at, id"#,
        from,
        until
    )
    .fetch_all(conn)
    .await
}
