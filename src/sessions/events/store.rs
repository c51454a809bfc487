//! SQL of events.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Event;
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{EventId, ProjectId, SessionId};
use crate::time::Timestamp;

/// Inserts an event. Its time is later than that of every stored message and event of the session. Returns `None` if the project
/// has no such session.
pub async fn insert(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    r#type: &str,
    data: Map<String, Value>,
) -> sqlx::Result<Option<Event>> {
    sqlx::query_as!(
        Event,
        r#"with latest as (
               select s.id, s.project_id,
                      greatest(clock_timestamp(), s.last_message_at + interval '1 microsecond',
                               (select max(e.created_at) from session_events e where e.session_id = s.id)
                                   + interval '1 microsecond') as time
               from sessions s where s.id = $2 and s.project_id = $3 for no key update
           )
           insert into session_events (id, session_id, project_id, type, data, created_at, updated_at)
           select $1, id, project_id, $4, $5, time, time from latest
           returning id as "id: EventId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId", type,
                     data as "data: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                     updated_at as "updated_at: Timestamp""#,
        EventId::new() as _,
        session as _,
        project as _,
        r#type,
        Json(data) as _,
    )
    .fetch_optional(conn)
    .await
}

macro_rules! select_events {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Event,
            r#"select t.id as "id: EventId", t.session_id as "session_id: SessionId", t.project_id as "project_id: ProjectId",
                      t.type, t.data as "data: Json<Map<String, Value>>", t.created_at as "created_at: Timestamp",
                      t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &PageRequest,
) -> sqlx::Result<Vec<Event>> {
    fetch_page!(
        select_events!("session_events t where t.project_id = $4 and t.session_id = $5"; project as _, session as _),
        conn,
        page
    )
}

/// Lists the events from `from` to `to`, both included, oldest first.
pub async fn list_between(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    from: Timestamp,
    to: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<Event>> {
    select_events!(
        "session_events t
         where t.project_id = $1 and t.session_id = $2 and t.created_at between $3 and $4
         order by t.created_at, t.id limit $5";
        project as _,
        session as _,
        from as _,
        to as _,
        limit,
    )
    .fetch_all(conn)
    .await
}
