//! SQL of disks.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::Disk;
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{DiskId, ProjectId, UserId};
use crate::time::Timestamp;

pub async fn insert(conn: &mut PgConnection, project: ProjectId, user: Option<UserId>) -> sqlx::Result<Disk> {
    sqlx::query_as!(
        Disk,
        r#"insert into disks (id, project_id, user_id) values ($1, $2, $3)
           returning id as "id: DiskId", project_id as "project_id: ProjectId", user_id as "user_id: UserId",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        DiskId::new() as _,
        project as _,
        user as _,
    )
    .fetch_one(conn)
    .await
}

/// Enables the recording of the time of the last change: from now on, [`apply`](super::apply::apply) sets `disks.changed_at` with
/// each change of the disk's files.
pub async fn track_changes(conn: &mut PgConnection, disk: DiskId) -> sqlx::Result<()> {
    sqlx::query!("update disks set changed_at = now() where id = $1 and changed_at is null", disk as _)
        .execute(conn)
        .await
        .map(drop)
}

/// Locks disks whose changes are tracked, so that no other transaction can change their files until this one ends. Returns the
/// time of the last change of each. Locks them in the order of their ids, so that two transactions cannot deadlock.
pub async fn lock_tracked(
    conn: &mut PgConnection,
    project: ProjectId,
    disks: &[DiskId],
) -> sqlx::Result<HashMap<DiskId, Timestamp>> {
    let locked = sqlx::query!(
        r#"select id as "id: DiskId", changed_at as "changed_at!: Timestamp" from disks
           where project_id = $1 and id = any($2) and changed_at is not null order by id for no key update"#,
        project as _,
        disks as _,
    );
    Ok(locked.fetch_all(conn).await?.into_iter().map(|disk| (disk.id, disk.changed_at)).collect())
}

/// The filter of a list of disks.
pub struct DiskFilter<'a> {
    /// The identifier of the user who owns the disks.
    pub user: Option<&'a str>,
    pub id: Option<DiskId>,
}

/// Selects disks from the table that the caller names `t`.
macro_rules! select_disks {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Disk,
            r#"select t.id as "id: DiskId", t.project_id as "project_id: ProjectId", t.user_id as "user_id: UserId",
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    filter: &DiskFilter<'_>,
    page: &PageRequest,
) -> sqlx::Result<Vec<Disk>> {
    fetch_page!(
        select_disks!(
            "disks t
             where t.project_id = $4
               and ($5::text is null
                    or t.user_id = (select u.id from users u where u.project_id = $4 and u.identifier = $5))
               and ($6::uuid is null or t.id = $6)";
            project as _,
            filter.user,
            filter.id as _,
        ),
        conn,
        page
    )
}

/// Returns `true` if the project has this disk.
pub async fn exists(conn: &mut PgConnection, project: ProjectId, disk: DiskId) -> sqlx::Result<bool> {
    let row =
        sqlx::query_scalar!("select 1 as one from disks where id = $1 and project_id = $2", disk as _, project as _);
    Ok(row.fetch_optional(conn).await?.is_some())
}

/// Deletes a disk with all its files, and the skill whose disk it is. Releases the blobs of the files. Returns `false` if the
/// project has no such disk.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, disk: DiskId) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("delete from disks where id = $1 and project_id = $2", disk as _, project as _);
    Ok(deleted.execute(conn).await?.rows_affected() == 1)
}
