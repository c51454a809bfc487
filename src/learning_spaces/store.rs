//! SQL of learning spaces.

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{LearningStatus, Space, SpaceSession, SpaceSkill};
use crate::db::page::{PageRequest, fetch_page};
use crate::ids::{ProjectId, SessionId, SkillId, SpaceId, SpaceSessionId, SpaceSkillId, UserId};
use crate::sessions::lock::LockedSession;
use crate::time::Timestamp;

pub async fn insert(
    conn: &mut PgConnection,
    project: ProjectId,
    user: Option<UserId>,
    meta: Option<&Map<String, Value>>,
) -> sqlx::Result<Space> {
    sqlx::query_as!(
        Space,
        r#"insert into learning_spaces (id, project_id, user_id, meta) values ($1, $2, $3, $4)
           returning id as "id: SpaceId", user_id as "user_id: UserId", meta as "meta: Json<Map<String, Value>>",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        SpaceId::new() as _,
        project as _,
        user as _,
        meta.map(Json) as _,
    )
    .fetch_one(conn)
    .await
}

/// A space of the project; others are as if they were not there.
pub async fn get(conn: &mut PgConnection, project: ProjectId, space: SpaceId) -> sqlx::Result<Option<Space>> {
    sqlx::query_as!(
        Space,
        r#"select id as "id: SpaceId", user_id as "user_id: UserId", meta as "meta: Json<Map<String, Value>>",
                  created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp"
           from learning_spaces where id = $1 and project_id = $2"#,
        space as _,
        project as _,
    )
    .fetch_optional(conn)
    .await
}

/// What a list of spaces is narrowed to.
pub struct Filter<'a> {
    pub user: Option<&'a str>,
    /// Spaces whose meta contains this.
    pub meta: Option<Map<String, Value>>,
}

macro_rules! select_spaces {
    ($($rest:literal)+; $($parameter:expr),* $(,)?) => {
        sqlx::query_as!(
            Space,
            r#"select t.id as "id: SpaceId", t.user_id as "user_id: UserId", t.meta as "meta: Json<Map<String, Value>>",
                      t.created_at as "created_at: Timestamp", t.updated_at as "updated_at: Timestamp"
               from "# $(+ $rest)+,
            $($parameter),*
        )
    };
}

pub async fn list(
    conn: &mut PgConnection,
    project: ProjectId,
    filter: Filter<'_>,
    page: &PageRequest,
) -> sqlx::Result<Vec<Space>> {
    fetch_page!(
        select_spaces!(
            "learning_spaces t
             where t.project_id = $4
               and ($5::text is null
                    or t.user_id = (select u.id from users u where u.project_id = $4 and u.identifier = $5))
               and ($6::jsonb is null or t.meta @> $6)";
            project as _,
            filter.user,
            filter.meta.map(Json) as _,
        ),
        conn,
        page
    )
}

/// Whether the project has this space.
pub async fn exists(conn: &mut PgConnection, project: ProjectId, space: SpaceId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from learning_spaces where id = $1 and project_id = $2",
        space as _,
        project as _,
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// As [`exists`], and it stays there until the transaction ends.
pub async fn hold(conn: &mut PgConnection, project: ProjectId, space: SpaceId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from learning_spaces where id = $1 and project_id = $2 for key share",
        space as _,
        project as _,
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// What is kept with a space, nothing being an empty object; locks the space.
pub async fn lock_meta(
    conn: &mut PgConnection,
    project: ProjectId,
    space: SpaceId,
) -> sqlx::Result<Option<Map<String, Value>>> {
    let found = sqlx::query_scalar!(
        r#"select meta as "meta: Json<Map<String, Value>>"
           from learning_spaces where id = $1 and project_id = $2 for no key update"#,
        space as _,
        project as _,
    );
    Ok(found.fetch_optional(conn).await?.map(|meta| meta.map(|meta| meta.0).unwrap_or_default()))
}

/// Wants the space's lock.
pub async fn set_meta(
    conn: &mut PgConnection,
    project: ProjectId,
    space: SpaceId,
    meta: &Map<String, Value>,
) -> sqlx::Result<Space> {
    sqlx::query_as!(
        Space,
        r#"update learning_spaces set meta = $3, updated_at = now() where id = $1 and project_id = $2
           returning id as "id: SpaceId", user_id as "user_id: UserId", meta as "meta: Json<Map<String, Value>>",
                     created_at as "created_at: Timestamp", updated_at as "updated_at: Timestamp""#,
        space as _,
        project as _,
        Json(meta) as _,
    )
    .fetch_one(conn)
    .await
}

/// Deletes a space. Its skills and sessions stay.
pub async fn delete(conn: &mut PgConnection, project: ProjectId, space: SpaceId) -> sqlx::Result<bool> {
    let gone = sqlx::query!("delete from learning_spaces where id = $1 and project_id = $2", space as _, project as _);
    Ok(gone.execute(conn).await?.rows_affected() == 1)
}

/// Puts a skill into a space; `None` if it is there, or another one of its name. Wants both held, and the skill's name.
pub async fn include(
    conn: &mut PgConnection,
    space: SpaceId,
    skill: SkillId,
    name: &str,
) -> sqlx::Result<Option<SpaceSkill>> {
    sqlx::query_as!(
        SpaceSkill,
        r#"insert into learning_space_skills (id, learning_space_id, skill_id, skill_name) values ($1, $2, $3, $4)
           on conflict do nothing
           returning id as "id: SpaceSkillId", learning_space_id as "learning_space_id: SpaceId",
                     skill_id as "skill_id: SkillId", created_at as "created_at: Timestamp""#,
        SpaceSkillId::new() as _,
        space as _,
        skill as _,
        name,
    )
    .fetch_optional(conn)
    .await
}

/// Whether a skill is in a space.
pub async fn has_skill(conn: &mut PgConnection, space: SpaceId, skill: SkillId) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select 1 as one from learning_space_skills where learning_space_id = $1 and skill_id = $2",
        space as _,
        skill as _,
    );
    Ok(found.fetch_optional(conn).await?.is_some())
}

/// Takes a skill out of a space.
pub async fn exclude(conn: &mut PgConnection, space: SpaceId, skill: SkillId) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from learning_space_skills where learning_space_id = $1 and skill_id = $2",
        space as _,
        skill as _,
    )
    .execute(conn)
    .await
    .map(drop)
}

/// Notes that a space learns a session; `None` if one does already. Wants both held.
pub async fn insert_session(session: &mut LockedSession<'_>, space: SpaceId) -> sqlx::Result<Option<SpaceSession>> {
    sqlx::query_as!(
        SpaceSession,
        r#"insert into learning_space_sessions (id, learning_space_id, session_id) values ($1, $2, $3)
           on conflict (session_id) do nothing
           returning id as "id: SpaceSessionId", learning_space_id as "learning_space_id: SpaceId",
                     session_id as "session_id: SessionId", status as "status: LearningStatus", created_at as "created_at: Timestamp",
                     updated_at as "updated_at: Timestamp""#,
        SpaceSessionId::new() as _,
        space as _,
        session.id as _,
    )
    .fetch_optional(&mut ***session)
    .await
}

pub async fn get_session(
    conn: &mut PgConnection,
    space: SpaceId,
    session: SessionId,
) -> sqlx::Result<Option<SpaceSession>> {
    sqlx::query_as!(
        SpaceSession,
        r#"select id as "id: SpaceSessionId", learning_space_id as "learning_space_id: SpaceId",
                  session_id as "session_id: SessionId", status as "status: LearningStatus", created_at as "created_at: Timestamp",
                  updated_at as "updated_at: Timestamp"
           from learning_space_sessions where learning_space_id = $1 and session_id = $2"#,
        space as _,
        session as _,
    )
    .fetch_optional(conn)
    .await
}

/// The sessions that a space learns, oldest first.
pub async fn list_sessions(conn: &mut PgConnection, space: SpaceId, limit: usize) -> sqlx::Result<Vec<SpaceSession>> {
    sqlx::query_as!(
        SpaceSession,
        r#"select id as "id: SpaceSessionId", learning_space_id as "learning_space_id: SpaceId",
                  session_id as "session_id: SessionId", status as "status: LearningStatus", created_at as "created_at: Timestamp",
                  updated_at as "updated_at: Timestamp"
           from learning_space_sessions where learning_space_id = $1 order by created_at, id limit $2"#,
        space as _,
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// The progress of a session whose learning is pending.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct LearningProgress {
    pub session: SessionId,
    pub has_pending_messages: bool,
    /// Messages failed to be observed.
    pub has_failed: bool,
    pub has_open_tasks: bool,
    pub has_finished_tasks: bool,
}

/// What is known of a session; `None` if it is not learned, or something has come of it already.
pub async fn get_progress(conn: &mut PgConnection, session: SessionId) -> sqlx::Result<Option<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", has_pending_messages as "has_pending_messages!",
                  has_failed as "has_failed!", has_open_tasks as "has_open_tasks!", has_finished_tasks as "has_finished_tasks!"
           from pending_learning_sessions where session_id = $1"#,
        session as _
    )
    .fetch_optional(conn)
    .await
}

/// As [`get_progress`], for all sessions of a space, oldest first.
pub async fn list_progress(conn: &mut PgConnection, space: SpaceId) -> sqlx::Result<Vec<LearningProgress>> {
    sqlx::query_as!(
        LearningProgress,
        r#"select session_id as "session!: SessionId", has_pending_messages as "has_pending_messages!",
                  has_failed as "has_failed!", has_open_tasks as "has_open_tasks!", has_finished_tasks as "has_finished_tasks!"
           from pending_learning_sessions where learning_space_id = $1 order by created_at, id"#,
        space as _
    )
    .fetch_all(conn)
    .await
}

/// Sets how far learning from a session is.
pub async fn set_session_status(session: &mut LockedSession<'_>, status: LearningStatus) -> sqlx::Result<()> {
    sqlx::query!(
        "update learning_space_sessions set status = $2, updated_at = now() where session_id = $1",
        session.id as _,
        status as _
    )
    .execute(&mut ***session)
    .await
    .map(drop)
}
