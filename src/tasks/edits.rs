//! SQL that reads the tasks of a session for an observation, and writes its result.

use sqlx::PgConnection;
use sqlx::types::Json;

use super::{TaskData, TaskStatus};
use crate::ids::{ProjectId, SessionId, TaskId};
use crate::sessions::lock::LockedSession;

/// The `order` of the planning task.
const PLANNING_ORDER: i64 = 0;
/// The description of the planning task. Clients do not see it.
const PLANNING_DESCRIPTION: &str = "planning and requirements";

/// A task as an observation reads it. Two values are equal if nothing that an observation changes is different.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTask {
    pub id: TaskId,
    pub order: i64,
    pub status: TaskStatus,
    pub data: Json<TaskData>,
    pub is_planning: bool,
}

/// The new state of a task; a new task if the session has no task with this id.
#[derive(Clone, Debug)]
pub struct TaskChange {
    pub id: TaskId,
    pub order: i64,
    pub status: TaskStatus,
    pub data: TaskData,
    /// `true` if the task is finished and ends with this change, even if it was finished before.
    pub has_ended: bool,
}

/// Returns the tasks of a session in their order, with the planning task.
pub async fn list_all(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
) -> sqlx::Result<Vec<StoredTask>> {
    sqlx::query_as!(
        StoredTask,
        r#"select id as "id: TaskId", "order", status as "status: TaskStatus", data as "data: Json<TaskData>", is_planning
           from tasks where project_id = $1 and session_id = $2 order by "order""#,
        project as _,
        session as _,
    )
    .fetch_all(conn)
    .await
}

/// Writes the new state of tasks. The orders of all tasks of the session must differ afterwards.
pub async fn apply_changes(session: &mut LockedSession<'_>, changes: &[TaskChange]) -> sqlx::Result<()> {
    let ids: Vec<_> = changes.iter().map(|change| change.id.0).collect();
    let orders: Vec<_> = changes.iter().map(|change| change.order).collect();
    let statuses: Vec<_> = changes.iter().map(|change| change.status.as_str().to_owned()).collect();
    let data: Vec<_> = changes.iter().map(|change| serde_json::json!(change.data)).collect();
    let have_ended: Vec<_> = changes.iter().map(|change| change.has_ended).collect();
    // The orders are unique at every moment, so that the changed tasks give up theirs first.
    sqlx::query!(
        r#"update tasks t set "order" = -c.ordinal from unnest($3::uuid[]) with ordinality as c(id, ordinal)
           where t.project_id = $1 and t.session_id = $2 and t.id = c.id"#,
        session.project as _,
        session.id as _,
        &ids,
    )
    .execute(&mut ***session)
    .await?;
    // Keys of `data` that this version does not know are kept.
    sqlx::query!(
        r#"insert into tasks as t (id, project_id, session_id, "order", status, data, ended_at)
           select c.id, $1, $2, c."order", c.status, c.data, case when c.has_ended then now() end
           from unnest($3::uuid[], $4::bigint[], $5::text[], $6::jsonb[], $7::boolean[])
               as c(id, "order", status, data, has_ended)
           on conflict (id) do update
               set "order" = excluded."order", status = excluded.status, data = t.data || excluded.data,
                   ended_at = case when excluded.status in ('success', 'failed') then coalesce(excluded.ended_at, t.ended_at) end,
                   updated_at = now()
               where t.project_id = $1 and t.session_id = $2"#,
        session.project as _,
        session.id as _,
        &ids,
        &orders,
        &statuses,
        &data,
        &have_ended,
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}

/// Returns the preferences of the user that are known from a session, oldest first.
pub async fn list_preferences(session: &mut LockedSession<'_>) -> sqlx::Result<Vec<String>> {
    let data = sqlx::query_scalar!(
        r#"select data as "data: Json<TaskData>" from tasks where project_id = $1 and session_id = $2 and is_planning"#,
        session.project as _,
        session.id as _,
    );
    let data = data.fetch_all(&mut ***session).await?;
    Ok(data.into_iter().flat_map(|data| data.0.user_preferences).collect())
}

/// Appends preferences to the planning task of a session, which is created if the session has none. Returns its id.
pub async fn append_preferences(session: &mut LockedSession<'_>, preferences: &[String]) -> sqlx::Result<TaskId> {
    sqlx::query_scalar!(
        r#"insert into tasks as t (id, project_id, session_id, "order", is_planning, data)
           values ($1, $2, $3, $4, true,
                   jsonb_build_object('task_description', $5::text, 'user_preferences', to_jsonb($6::text[])))
           on conflict (session_id, "order") do update
               set data = t.data || jsonb_build_object('user_preferences',
                       coalesce(t.data -> 'user_preferences', '[]') || to_jsonb($6::text[])), updated_at = now()
           returning id as "id: TaskId""#,
        TaskId::new() as _,
        session.project as _,
        session.id as _,
        PLANNING_ORDER,
        PLANNING_DESCRIPTION,
        preferences,
    )
    .fetch_one(&mut ***session)
    .await
}
