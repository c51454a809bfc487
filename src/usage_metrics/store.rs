//! SQL of usage metrics.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Metric;
use crate::ids::ProjectId;
use crate::time::Timestamp;

/// The tag of the rows that mark a project as over its storage quota.
pub const STORAGE_QUOTA_TAG: &str = "excess.storage.usage";
/// The tag of the counters of tasks that observations have created.
pub const TASKS_CREATED_TAG: &str = "task.created";
/// The tag of the counters of the seconds that sandboxes live.
pub const SANDBOX_ALIVE_TAG: &str = "sandbox.alive";
/// The tag of the rows that mark a project as over its task quota.
pub const TASK_QUOTA_TAG: &str = "excess.task.created";

/// Returns `true` if a project is over the quota with this tag: if the newest row with the tag is not 0.
pub async fn is_over_quota(conn: &mut PgConnection, project: ProjectId, tag: &str) -> sqlx::Result<bool> {
    let newest = sqlx::query_scalar!(
        "select increment from metrics where project_id = $1 and tag = $2 order by created_at desc limit 1",
        project as _,
        tag
    );
    Ok(newest.fetch_optional(conn).await?.is_some_and(|increment| increment != 0))
}

/// Marks a project as over the quota with this tag, or clears the mark. The row is dated to the epoch, so that it is never
/// pushed to the billing service. Does nothing if the project does not exist.
pub async fn set_over_quota(
    conn: &mut PgConnection,
    project: ProjectId,
    tag: &str,
    exceeded: bool,
) -> sqlx::Result<()> {
    sqlx::query!("delete from metrics where project_id = $1 and tag = $2", project as _, tag)
        .execute(&mut *conn)
        .await?;
    if exceeded {
        sqlx::query!(
            "insert into metrics (project_id, tag, increment, created_at, updated_at)
             select id, $2, 1, 'epoch', 'epoch' from projects where id = $1",
            project as _,
            tag
        )
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Adds `count` to today's counter (UTC) of a project with this tag. Waits while another transaction changes the counter.
pub async fn increment(conn: &mut PgConnection, project: ProjectId, tag: &str, count: i64) -> sqlx::Result<()> {
    sqlx::query!(
        "select pg_advisory_xact_lock(hashtext('acontextd metric'), hashtext($1::text || $2))",
        project.to_string(),
        tag
    )
    .fetch_one(&mut *conn)
    .await?;
    let update = sqlx::query!(
        "update metrics set increment = increment + $3, updated_at = now()
         where project_id = $1 and tag = $2
           and created_at >= (now() at time zone 'utc')::date::timestamp at time zone 'utc'",
        project as _,
        tag,
        count
    );
    if update.execute(&mut *conn).await?.rows_affected() == 0 {
        sqlx::query!("insert into metrics (project_id, tag, increment) values ($1, $2, $3)", project as _, tag, count)
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Tries to acquire the advisory lock that allows one push at a time. The lock belongs to the connection, not to a
/// transaction.
pub async fn try_lock_push(conn: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"select pg_try_advisory_lock(hashtext('acontextd push metrics')) as "acquired!""#)
        .fetch_one(conn)
        .await
}

/// Returns the time of the database's clock, which also sets the times of the rows.
pub async fn now(conn: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(conn).await
}

/// Updates the row with the storage usage of each project if the usage has changed. The caller must hold the push lock.
pub async fn refresh_storage_usage(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        "with stored as (
             select p.id, coalesce(sum(b.size), 0)::bigint as bytes
             from projects p left join blobs b on b.project_id = p.id and b.state = 'live' group by p.id
         ),
         updated as (
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

/// Lists the rows that changed from `from` until `until`, and the rows of storage usage that changed later. Leaves out the rows
/// that mark projects as over a quota.
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
