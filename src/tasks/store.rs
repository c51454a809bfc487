//! SQL of tasks.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Task, TaskData, TaskStatus};
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{ProjectId, SessionId, TaskId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

macro_rules! select_tasks {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Task,
            r#"select t.id as "id: TaskId", t.session_id as "session_id: SessionId",
                      t.project_id as "project_id: ProjectId", t."order", t.data as "data: Json<TaskData>",
                      t.status as "status: TaskStatus", t.is_planning,
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// Returns a page of the tasks of a session, without the planning task.
pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &PageRequest,
) -> sqlx::Result<Vec<Task>> {
    fetch_page!(
        select_tasks!(
            "tasks t where t.project_id = $4 and t.session_id = $5 and not t.is_planning";
            project as _,
            session as _,
        ),
        conn,
        page
    )
}

/// Returns the ids of the finished tasks of a session in the order of the tasks, without the planning task.
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

/// Sets the status of the open tasks of a session to `success`, and returns their ids.
pub async fn complete_open(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<TaskId>> {
    sqlx::query_scalar!(
        r#"update tasks set status = 'success', ended_at = now(), updated_at = now()
           where project_id = $1 and session_id = $2 and not is_planning and status in ('pending', 'running')
           returning id as "id: TaskId""#,
        session.project as _,
        session.id as _,
    )
    .fetch_all(&mut ***session)
    .await
}
