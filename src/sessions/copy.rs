//! Copies a session, so that a conversation can be continued in two directions.

use std::time::Duration;

use axum::extract::State;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::db::interval;
use crate::encryption::ProjectEncryption;
use crate::error::{Error, Result};
use crate::http::extract::{Path, PathParam};
use crate::http::idempotency::Idempotency;
use crate::http::response::{self, CommandResult, Data};
use crate::ids::SessionId;
use crate::messages::convert;
use crate::platform::Platform;
use crate::sessions::lock::LockedSession;

/// Returns the route that copies a session. It is not part of `sessions::router`, because this file belongs to a higher layer.
pub fn router() -> OpenApiRouter<Platform> {
    OpenApiRouter::new().routes(routes!(copy_session))
}

/// The unparsed session id. [`copy_session`] parses it, because clients match its error text for an invalid id.
pub struct RawSessionId(String);

impl PathParam for RawSessionId {
    const NAME: &'static str = "session_id";

    fn parse(text: &str) -> Result<Self, &'static str> {
        Ok(Self(text.to_owned()))
    }
}

#[derive(Serialize, utoipa::ToSchema)]
pub struct CopySessionResponse {
    old_session_id: SessionId,
    new_session_id: SessionId,
}

/// Copy a session
///
/// Copies messages, tasks and events with their order, timestamps and status. Files are shared.
#[utoipa::path(post, path = "/api/v1/session/{session_id}/copy", tag = "session",
    params(("session_id" = SessionId, Path)))]
pub async fn copy_session(
    State(platform): State<Platform>,
    caller: Caller,
    idempotency: Idempotency,
    Path(id): Path<RawSessionId>,
) -> CommandResult<Data<CopySessionResponse>> {
    let session: SessionId = id.0.parse().map_err(|_| Error::bad_request("INVALID_SESSION_ID"))?;
    let mut tx = idempotency.begin().await?;
    let locked = LockedSession::lock_to_store(&mut tx, caller.project, session).await?;
    let (format, mut locked) = locked.ok_or(Error::NotFound("SESSION_NOT_FOUND"))?;
    let encryption = ProjectEncryption { format, ..caller.encryption };
    encryption.ensure_can_store()?;
    if count_messages(&mut locked).await? > platform.config.limits.max_copied_messages as u64 {
        return Err(Error::PayloadTooLarge("SESSION_TOO_LARGE".into()).into());
    }
    // Convert the original to the project's storage format, because the copy must have it.
    let mut converted = convert::convert_batch(&mut locked, &encryption, format, None).await?;
    while let Some(after) = converted.next {
        converted = convert::convert_batch(&mut locked, &encryption, format, Some(after)).await?;
    }
    let copy = SessionId::new();
    insert_copy(&mut locked, copy).await?;
    let encrypted_kek = platform.queue.wrap_kek_if_encrypted(&encryption)?;
    copy_content(&mut locked, copy, platform.config.learning.buffer_ttl, encrypted_kek).await?;
    let response = response::ok(CopySessionResponse { old_session_id: session, new_session_id: copy });
    // `copy_content` enqueues a job in SQL, which does not wake the job runners.
    tx.wake_on_commit();
    tx.commit(response).await
}

async fn count_messages(session: &mut LockedSession<'_>) -> sqlx::Result<u64> {
    let count =
        sqlx::query_scalar!(r#"select count(*) as "count!" from messages where session_id = $1"#, session.id as _);
    Ok(count.fetch_one(&mut ***session).await?.cast_unsigned())
}

async fn insert_copy(session: &mut LockedSession<'_>, copy: SessionId) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into sessions (id, project_id, user_id, disable_task_tracking, configs)
         select $2, project_id, user_id, disable_task_tracking, configs from sessions where id = $1",
        session.id as _,
        copy as _
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}

/// Copies the content of a session. The new rows have new ids, and refer to each other in the same way as the original rows.
/// Messages keep their status, so that observed messages are not observed again; only `running` becomes `pending`.
async fn copy_content(
    session: &mut LockedSession<'_>,
    copy: SessionId,
    delay: Duration,
    encrypted_kek: Option<Vec<u8>>,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"with task_ids as materialized (select id as old, gen_random_uuid() as new from tasks where session_id = $1),
           message_ids as materialized (select id as old, gen_random_uuid() as new from messages where session_id = $1),
           new_tasks as (
               insert into tasks (id, session_id, project_id, "order", data, status, is_planning, ended_at, created_at, updated_at)
               select i.new, $2, t.project_id, t."order", t.data, t.status, t.is_planning, t.ended_at, t.created_at, t.updated_at
               from tasks t join task_ids i on i.old = t.id
           ),
           new_messages as (
               insert into messages (id, session_id, parent_id, role, format, content, encrypted_as, tokens, meta, user_meta,
                                     call_references, task_id, session_task_process_status, created_at, updated_at)
               select i.new, $2, p.new, m.role, m.format, m.content, m.encrypted_as, m.tokens, m.meta, m.user_meta, m.call_references,
                      t.new, case m.session_task_process_status when 'running' then 'pending'
                             else m.session_task_process_status end, m.created_at, m.updated_at
               from messages m
               join message_ids i on i.old = m.id
               left join message_ids p on p.old = m.parent_id
               left join task_ids t on t.old = m.task_id
               returning session_task_process_status as status
           ),
           new_files as (
               insert into message_files (message_id, s3_key, session_id, blob_id, sha256, mime, filename)
               select i.new, f.s3_key, $2, f.blob_id, f.sha256, f.mime, f.filename
               from message_files f join message_ids i on i.old = f.message_id
           ),
           new_events as (
               insert into session_events (id, session_id, project_id, type, data, created_at, updated_at)
               select gen_random_uuid(), $2, project_id, type, data, created_at, updated_at
               from session_events where session_id = $1
           ),
           enqueued as (
               insert into jobs (id, project_id, kind, payload, lane, dedupe_key, run_at, encrypted_kek)
               select gen_random_uuid(), s.project_id, o.kind, o.payload, o.lane, o.dedupe_key, now() + $3::interval, $4
               from sessions s, observe_job($2) o where s.id = $1 and exists (select 1 from new_messages where status = 'pending')
           )
           update sessions c
           set last_message_id = i.new, last_message_at = s.last_message_at, pending_messages = p.pending, has_observe_job = p.pending > 0
           from sessions s
           left join message_ids i on i.old = s.last_message_id
           cross join (select count(*)::int as pending from new_messages where status = 'pending') p
           where s.id = $1 and c.id = $2"#,
        session.id as _,
        copy as _,
        interval(delay) as _,
        encrypted_kek,
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}
