//! SQL of events.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::Event;
use crate::db::page::PageRequest;
use crate::ids::{EventId, ProjectId, SessionId};
use crate::time::Timestamp;

/// Tells an event. It is later than every message and event that was there before; `None` if the project has no such session.
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

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    page: &PageRequest,
) -> sqlx::Result<Vec<Event>> {
    let (time, id) = page.after_params();
    if page.newest_first {
        sqlx::query_as!(
            Event,
            r#"select id as "id: EventId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId", type,
                      data as "data: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp"
               from session_events
               where project_id = $1 and session_id = $2
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
            Event,
            r#"select id as "id: EventId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId", type,
                      data as "data: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                      updated_at as "updated_at: Timestamp"
               from session_events
               where project_id = $1 and session_id = $2
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

/// The events of a time, both ends included, oldest first.
pub async fn list_between(
    conn: &mut PgConnection,
    project: ProjectId,
    session: SessionId,
    from: Timestamp,
    to: Timestamp,
    limit: i64,
) -> sqlx::Result<Vec<Event>> {
    sqlx::query_as!(
        Event,
        r#"select id as "id: EventId", session_id as "session_id: SessionId", project_id as "project_id: ProjectId", type,
                  data as "data: Json<Map<String, Value>>", created_at as "created_at: Timestamp",
                  updated_at as "updated_at: Timestamp"
           from session_events
           where project_id = $1 and session_id = $2 and created_at between $3 and $4
           order by created_at, id limit $5"#,
        project as _,
        session as _,
        from as _,
        to as _,
        limit,
    )
    .fetch_all(conn)
    .await
}
