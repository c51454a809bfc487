//! SQL of tasks.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Task, TaskData, TaskStatus};
use crate::db::page::PageRequest;
use crate::ids::{ProjectId, SessionId, TaskId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

/// The tasks of a session that are work, in the order they were made.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &PageRequest,
) -> sqlx::Result<Vec<Task>> {
    let (time, id) = page.after_params();
    if page.newest_first {
        sqlx::query_as!(
            Task,
            r#"select id as "id: TaskId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId",
                      "order", data as "data: Json<TaskData>", status as "status: TaskStatus", is_planning, created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp"
               from tasks
               where project_id = $1 and session_id = $2 and not is_planning
                 and (created_at, id) < (coalesce($3, 'infinity'::timestamptz),
                      coalesce($4, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
               order by created_at desc, id desc limit $5"#,
            project as _,
            session as _,
            time,
            id,
            page.fetch_limit(),
        )
        .fetch_all(conn)
        .await
    } else {
        sqlx::query_as!(
            Task,
            r#"select id as "id: TaskId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId",
                      "order", data as "data: Json<TaskData>", status as "status: TaskStatus", is_planning, created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp"
               from tasks
               where project_id = $1 and session_id = $2 and not is_planning
                 and (created_at, id) > (coalesce($3, '-infinity'::timestamptz),
                      coalesce($4, '00000000-0000-0000-0000-000000000000'::uuid))
               order by created_at, id limit $5"#,
            project as _,
            session as _,
            time,
            id,
            page.fetch_limit(),
        )
        .fetch_all(conn)
        .await
    }
}

/// Lists the finished tasks of a session, in their order.
pub async fn list_finished(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar!(
        r#"select id as "id: TaskId" from tasks
           where project_id = $1 and session_id = $2 and not is_planning and status in ('success', 'failed')
           order by "order""#,
        session.project as _,
        session.id as _,
    )
    .fetch_all(&mut ***session)
    .await
}

/// Completes the open tasks of a session as successes.
pub async fn complete_open(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar!(
        r#"update tasks set status = 'success', updated_at = now()
           where project_id = $1 and session_id = $2 and not is_planning and status in ('pending', 'running')
           returning id as "id: TaskId""#,
        session.project as _,
        session.id as _,
    )
    .fetch_all(&mut ***session)
    .await
}
