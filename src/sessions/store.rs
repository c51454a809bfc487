//! SQL of sessions.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::lock::LockedSession;
use super::{SESSION_ACCESS_DENIED, SESSION_NOT_FOUND, Session};
use crate::db::page::{PageRequest, fetch_page};
use crate::error::Result;
use crate::ids::{ProjectId, SessionId, UserId};
use crate::time::Timestamp;

/// A session to insert.
pub struct NewSession {
    pub id: SessionId,
    pub user: Option<UserId>,
    pub disable_task_tracking: bool,
    pub configs: Option<Map<String, Value>>,
}

/// Inserts a session. Returns `None` if the id exists already, in any project. Waits for a concurrent transaction that inserts
/// the same id.
pub async fn insert(conn: &mut PgConnection, project: ProjectId, new: NewSession) -> sqlx::Result<Option<Session>> {
    sqlx::query_as!(
        Session,
        r#"insert into sessions (id, project_id, user_id, disable_task_tracking, configs) values ($1, $2, $3, $4, $5)
           on conflict (id) do nothing
           returning id as "id: SessionId", project_id as "project_id: ProjectId", user_id as "user_id: UserId",
                     disable_task_tracking, configs as "configs: Json<Map<String, Value>>",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        new.id as _,
        project as _,
        new.user as _,
        new.disable_task_tracking,
        new.configs.map(Json) as _,
    )
    .fetch_optional(conn)
    .await
}

macro_rules! select_sessions {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Session,
            r#"select t.id as "id: SessionId", t.project_id as "project_id: ProjectId", t.user_id as "user_id: UserId",
                      t.disable_task_tracking, t.configs as "configs: Json<Map<String, Value>>",
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

/// Returns a session of the project. Sessions of other projects are not found.
pub async fn get(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<Option<Session>> {
    select_sessions!("sessions t where t.id = $1 and t.project_id = $2"; session as _, project as _)
        .fetch_optional(conn)
        .await
}

/// The filter of a list of sessions.
pub struct SessionFilter<'a> {
    pub user: Option<&'a str>,
    pub id: Option<SessionId>,
    /// Only sessions whose configs contain this object.
    pub configs: Option<Map<String, Value>>,
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    filter: SessionFilter<'_>,
    page: &PageRequest,
) -> sqlx::Result<Vec<Session>> {
    fetch_page!(
        select_sessions!(
            "sessions t
             where t.project_id = $4
               and ($5::text is null
                    or t.user_id = (select u.id from users u where u.project_id = $4 and u.identifier = $5))
               and ($6::uuid is null or t.id = $6)
               and ($7::jsonb is null or t.configs @> $7)";
            project as _,
            filter.user,
            filter.id as _,
            filter.configs.map(Json) as _,
        ),
        conn,
        page
    )
}

/// Returns `true` if the project has this session.
pub async fn exists(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from sessions where id = $1 and project_id = $2",
        session as _,
        project as _
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// Checks that the project has this session.
///
/// # Errors
/// Returns 404 if the session does not exist, and 403 if it belongs to another project.
pub async fn ensure_owned(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> Result<()> {
    let owning_project =
        sqlx::query_scalar!(r#"select project_id as "id: ProjectId" from sessions where id = $1"#, session as _);
    match owning_project.fetch_optional(conn).await? {
        Some(id) if id == project => Ok(()),
        Some(_) => Err(SESSION_ACCESS_DENIED),
        None => Err(SESSION_NOT_FOUND),
    }
}

/// Deletes a session with everything in it, and releases its blobs. Returns `false` if the project has no such session.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, session: SessionId) -> sqlx::Result<bool> {
    let deleted = sqlx::query!("delete from sessions where id = $1 and project_id = $2", session as _, project as _);
    Ok(deleted.execute(conn).await?.rows_affected() == 1)
}

/// Returns the configs of a session, or an empty object if they were never set.
pub async fn get_configs(session: &mut LockedSession<'_>) -> sqlx::Result<Map<String, Value>> {
    let configs = sqlx::query_scalar!(
        r#"select configs as "configs: Json<Map<String, Value>>" from sessions where id = $1"#,
        session.id as _
    );
    Ok(configs.fetch_one(&mut ***session).await?.map(|configs| configs.0).unwrap_or_default())
}

/// Returns the text at the key `original_date` of a session's configs: the date of a conversation that was imported.
pub async fn get_original_date(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<String>> {
    let date =
        sqlx::query_scalar!("select configs ->> 'original_date' as date from sessions where id = $1", session as _);
    Ok(date.fetch_optional(conn).await?.flatten())
}

pub async fn set_configs(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    configs: &Map<String, Value>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "update sessions set configs = $3, updated_at = now() where id = $1 and project_id = $2",
        session as _,
        project as _,
        Json(configs) as _
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Records whether a job exists that will observe the pending messages of the session. Does not enqueue or delete a job.
pub async fn set_has_observe_job(session: &mut LockedSession<'_>, has_observe_job: bool) -> sqlx::Result<()> {
    sqlx::query!("update sessions set has_observe_job = $2 where id = $1", session.id as _, has_observe_job)
        .execute(&mut ***session)
        .await
        .map(drop)
}

/// Recounts the pending messages of a session after some of them were claimed.
pub async fn recount_pending_messages(session: &mut LockedSession<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        "update sessions set pending_messages = (select count(*) from messages
                                                 where session_id = $1 and session_task_process_status = 'pending')
         where id = $1",
        session.id as _
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}
