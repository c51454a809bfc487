//! SQL of disks.

use sqlx::PgConnection;

use super::Disk;
use crate::db::page::PageRequest;
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

/// What a list of disks is narrowed to.
pub struct Filter<'a> {
    pub user: Option<&'a str>,
    pub id: Option<DiskId>,
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    filter: &Filter<'_>,
    page: &PageRequest,
) -> sqlx::Result<Vec<Disk>> {
    let (time, id) = page.after_params();
    if page.newest_first {
        sqlx::query_as!(
            Disk,
            r#"select id as "id: DiskId", project_id as "project_id: ProjectId", user_id as "user_id: UserId",
                      created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
               from disks
               where project_id = $1
                 and ($2::text is null
                      or user_id = (select u.id from users u where u.project_id = $1 and u.identifier = $2))
                 and ($3::uuid is null or id = $3)
                 and (created_at, id) < (coalesce($4, 'infinity'::timestamptz),
                      coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
               order by created_at desc, id desc limit $6"#,
            project as _,
            filter.user,
            filter.id as _,
            time,
            id,
            page.fetch_limit(),
        )
        .fetch_all(conn)
        .await
    } else {
        sqlx::query_as!(
            Disk,
            r#"select id as "id: DiskId", project_id as "project_id: ProjectId", user_id as "user_id: UserId",
                      created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
               from disks
               where project_id = $1
                 and ($2::text is null
                      or user_id = (select u.id from users u where u.project_id = $1 and u.identifier = $2))
                 and ($3::uuid is null or id = $3)
                 and (created_at, id) > (coalesce($4, '-infinity'::timestamptz),
                      coalesce($5, '00000000-0000-0000-0000-000000000000'::uuid))
               order by created_at, id limit $6"#,
            project as _,
            filter.user,
            filter.id as _,
            time,
            id,
            page.fetch_limit(),
        )
        .fetch_all(conn)
        .await
    }
}

/// Whether the project has this disk.
pub async fn exists(conn: &mut PgConnection, project: ProjectId, disk: DiskId) -> sqlx::Result<bool> {
    let found =
        sqlx::query_scalar!("select 1 as one from disks where id = $1 and project_id = $2", disk as _, project as _);
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// Deletes a disk with everything on it; the stored bytes are released to the sweep.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, disk: DiskId) -> sqlx::Result<bool> {
    let gone = sqlx::query!("delete from disks where id = $1 and project_id = $2", disk as _, project as _);
    Ok(gone.execute(conn).await?.rows_affected() == 1)
}
